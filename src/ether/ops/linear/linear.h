// linear: y = x W^T + b with a weight that is usually frozen: then neither its gradient nor x is kept.
// A trained weight or bias gets its gradient; a frozen weight's gradient can be streamed to a caller instead.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>

namespace ether::ops {

// Receives the gradient (out, in) of one frozen weight during backward, in the accumulation dtype; it is
// freed after.
using WeightGradSink = std::function<void(const at::Tensor& gradient)>;

// x: (T, in), weight: (out, in), bias: (out) or undefined -> (T, out). All of one dtype, except that a
// trained float32 weight or bias may meet a bfloat16 x. known: the result, if someone has it already; then
// nothing is multiplied.
at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                  const WeightGradSink& sink = {}, const at::Tensor& known = {});

}  // namespace ether::ops
