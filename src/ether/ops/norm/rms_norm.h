// rms_norm: y = x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich, arXiv 1910.07467).
#pragma once

#include "ether/ops/rows/rows.h"

namespace ether::ops {

// weight: (d), any dtype, where d divides x's width: each piece of d values has a mean of its own (one
// head's, say). Differentiable in x and weight.
Rows::Value rms_norm(Rows& rows, Rows::Value x, const at::Tensor& weight, double eps);

// The same for x (T, d) alone.
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps);

}  // namespace ether::ops
