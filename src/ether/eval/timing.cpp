#include "ether/eval/timing.h"

#include <ATen/Functions.h>

#include <algorithm>
#include <chrono>

#include "ether/ops/device.h"

namespace ether::eval {

double seconds_of(const std::function<void()>& work, c10::Device device) {
    using Clock = std::chrono::steady_clock;
    ops::wait_for(device);
    const auto start = Clock::now();
    work();
    ops::wait_for(device);
    return std::chrono::duration<double>(Clock::now() - start).count();
}

double median(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    return values[values.size() / 2];
}

double copy_bandwidth(c10::Device device) {
    constexpr int64_t kBytes = int64_t{1} << 30;
    constexpr int kRepeats = 5;
    const auto from = at::ones({kBytes}, at::TensorOptions(device).dtype(at::kByte)),
               to = at::empty_like(from);
    double best = 1e30;
    for (int repeat = 0; repeat < kRepeats; ++repeat)
        best = std::min(best, seconds_of([&] { to.copy_(from); }, device));
    return 2 * static_cast<double>(kBytes) / best;
}

}  // namespace ether::eval
