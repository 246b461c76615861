// layer_norm: y = (x - mean) / sqrt(variance + eps) * weight + bias (Ba et al., arXiv 1607.06450).
#pragma once

#include "ether/ops/rows/rows.h"

namespace ether::ops {

// weight, bias: (d), any dtype. Differentiable in all three.
Rows::Value layer_norm(Rows& rows, Rows::Value x, const at::Tensor& weight, const at::Tensor& bias,
                       double eps);

}  // namespace ether::ops
