// What the heap keeps for later.
#pragma once

namespace ether {

// Gives the system back what was freed and is kept for reuse, which the heap of the program (jemalloc, as
// apps/ether/main.cpp sets it) never does by itself. Steps of ever other sizes leave pieces that fit nothing:
// gigabytes after some hundred. Costs the page faults of about one step.
void return_freed_memory();

}  // namespace ether
