// The losses of rows of logits by one kernel of a GPU (cross_entropy.cuh).
#pragma once

#include <ATen/core/Tensor.h>

namespace ether::ops {

// Whether a device has a kernel for logits of this dtype.
bool has_gpu_cross_entropy(at::ScalarType dtype, at::Device device);

// logits: (T, V), which become their gradient; targets: (T) int64 -> (T) losses in the accumulation dtype.
at::Tensor gpu_cross_entropy(const at::Tensor& logits, const at::Tensor& targets);

}  // namespace ether::ops
