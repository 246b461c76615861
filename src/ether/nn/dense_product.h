// The product with a Dense form's matrix, alone or added to a weight: neither the matrix nor the sum is kept
// between forward and backward.
#pragma once

#include "ether/nn/forms.h"
#include "ether/ops/linear/linear.h"

namespace ether::nn {

// x (T, in) -> x (weight + M)^T + bias, (T, out), all of one dtype; weight (out, in) and bias (out) may be
// undefined. sink and known as for ops::linear; the sum's gradient is the weight's.
at::Tensor dense_product(const Dense& form, const at::Tensor& x, const at::Tensor& weight,
                         const at::Tensor& bias, const ops::WeightGradSink& sink = {},
                         const at::Tensor& known = {});

}  // namespace ether::nn
