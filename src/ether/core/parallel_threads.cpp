#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

#include "ether/core/parallel.h"
#include "ether/core/parallel_backend.h"

namespace ether {
namespace {

std::atomic<int> threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
thread_local bool inside = false;

}  // namespace

int num_threads() { return threads; }

// libtorch's own threads are left alone: OMP_NUM_THREADS says how many it takes.
void set_num_threads(int count) { threads = count; }

namespace backend {

bool in_parallel() { return inside; }

void run(int count, const std::function<void(int)>& body) {
    auto chunk = [&body](int i) {
        inside = true;
        body(i);
        inside = false;
    };
    std::vector<std::thread> others;
    for (int i = 1; i < count; ++i) others.emplace_back(chunk, i);
    chunk(0);
    for (auto& other : others) other.join();
}

}  // namespace backend
}  // namespace ether
