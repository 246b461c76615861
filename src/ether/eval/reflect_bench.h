// Measures reflections alone, beside the rate at which the device copies memory.
#pragma once

#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

#include <cstdint>

namespace ether::eval {

struct ReflectOptions {
    int64_t width = 4096, blocks = 4, tokens = 16384;
    bool plus = false;  // ETHER+'s two terms instead of ETHER's one
    at::ScalarType dtype = at::kFloat;
    c10::Device device = at::kCPU;
    int64_t repeats = 5;
};

// Shares of the copy's rate, counting each value that must be read or written once: forward x and y; backward
// g and grad_x; with the vectors' gradients also x.
struct ReflectResult {
    double bytes_per_second = 0;
    double forward = 0, backward_frozen = 0, backward = 0;
};
ReflectResult bench_reflect(const ReflectOptions& options);

}  // namespace ether::eval
