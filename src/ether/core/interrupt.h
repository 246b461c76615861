// SIGINT, SIGTERM and SIGHUP as a flag that long work polls between steps, so that it can finish the step and
// save. A second signal ends the process at once, as by default. Process-wide.
#pragma once

#include <vector>

namespace ether {

// Those three, without SIGHUP where it was ignored when the program started: nohup means that.
std::vector<int> interrupt_signals();

void install_interrupt_handlers();

// The signal's number, or 0.
int interrupt_signal();

// Thrown by long work between two parts where a signal was caught and nothing of the work can be kept.
struct Interrupted {};

}  // namespace ether
