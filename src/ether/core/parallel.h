// A parallel-for over contiguous ranges, the only door to threads for kernels.
// Chunks depend on (n, grain, thread count) alone, so sums taken per chunk are reproducible.
#pragma once

#include <cstdint>
#include <functional>

namespace ether {

// Number of threads that parallel_for uses; set once by main (--threads), default all cores.
int num_threads();
void set_num_threads(int count);

// Number of chunks parallel_for(n, grain, ...) makes: at most num_threads(), each at least `grain` long.
int num_chunks(int64_t n, int64_t grain);

// Calls body(chunk, begin, end) for each chunk, in parallel; nested calls run in the calling thread. The
// first chunk's exception, if any, is thrown here when all are done.
void parallel_for(int64_t n, int64_t grain, const std::function<void(int, int64_t, int64_t)>& body);

}  // namespace ether
