// What runs parallel_for's chunks, chosen when ether is built (ETHER_THREADS): OpenMP's team, which libtorch
// shares, or threads started for each call, whose every step ThreadSanitizer can follow.
#pragma once

#include <functional>

namespace ether::backend {

// Whether the calling thread runs a chunk.
bool in_parallel();

// body(0) to body(count - 1), each in a thread; returns when all are done. body does not throw.
void run(int count, const std::function<void(int)>& body);

}  // namespace ether::backend
