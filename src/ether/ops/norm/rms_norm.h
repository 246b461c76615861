// rms_norm: y = x / sqrt(mean(x^2) + eps) * weight over the last axis (Zhang and Sennrich, arXiv 1910.07467),
// rounded as transformers' LlamaRMSNorm does: normalised in float32, cast to x's dtype, then scaled.
#pragma once

#include <ATen/core/Tensor.h>

namespace ether::ops {

// x: (T, d), weight: (d). Differentiable in both.
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps);

}  // namespace ether::ops
