// The fastest way this machine multiplies by given weights: a measurement, the denominator of every
// efficiency figure.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

namespace ether::ops {

struct GemmShape {
    int64_t out = 0, in = 0;
    int64_t count = 1;  // layers of this shape
};

struct GemmRate {
    std::string name;  // the fastest candidate, e.g. "MKL packed, whole batch"
    double flops_per_second = 0;
};

// Times y = x W^T and g W for every shape with `batch` sequences of `tokens` rows, by at::mm, MKL with packed
// weights (float32), oneDNN and as our own passes do (ops/gemm), on the whole batch with all threads and with
// one sequence a thread, and on other devices by at::mm on the whole batch; bfloat16 as float32 where
// ops/gemm does; per product the fastest of several repeats. Returns the candidate with the least time over
// all shapes.
GemmRate best_gemm_rate(const std::vector<GemmShape>& shapes, int64_t batch, int64_t tokens,
                        at::ScalarType dtype, at::Device device = at::kCPU);

}  // namespace ether::ops
