#include "ether/core/interrupt.h"

#include <csignal>

namespace ether {
namespace {

volatile std::sig_atomic_t received = 0;

void remember(int signal) {
    received = signal;
    std::signal(signal, SIG_DFL);
}

}  // namespace

std::vector<int> interrupt_signals() {
    struct sigaction found {};
    const bool hangs_up = ::sigaction(SIGHUP, nullptr, &found) == 0 && found.sa_handler != SIG_IGN;
    return hangs_up ? std::vector{SIGINT, SIGTERM, SIGHUP} : std::vector{SIGINT, SIGTERM};
}

void install_interrupt_handlers() {
    for (int signal : interrupt_signals()) std::signal(signal, remember);
}

int interrupt_signal() { return received; }

}  // namespace ether
