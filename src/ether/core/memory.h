// What memory there is, and what the heap keeps for later.
#pragma once

#include <cstdint>

namespace ether {

// What this process may still take: the system's available memory, or less where ulimit -v or a control group
// (a container's limit) says so. Bytes.
int64_t available_memory();

// What ulimit -v leaves this process, in bytes; the largest number where there is no such limit.
int64_t available_address_space();

// Gives the system back what was freed and is kept for reuse, which the heap of the program (jemalloc, as
// apps/ether/main.cpp sets it) never does by itself. Steps of ever other sizes leave pieces that fit nothing:
// gigabytes after some hundred. Costs the page faults of about one step.
void return_freed_memory();

}  // namespace ether
