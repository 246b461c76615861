#include "ether/core/interrupt.h"

#include <csignal>
#include <initializer_list>

namespace ether {
namespace {

volatile std::sig_atomic_t received = 0;

void remember(int signal) {
    received = signal;
    std::signal(signal, SIG_DFL);
}

}  // namespace

void install_interrupt_handlers() {
    for (int signal : {SIGINT, SIGTERM, SIGHUP}) std::signal(signal, remember);
}

int interrupt_signal() { return received; }

}  // namespace ether
