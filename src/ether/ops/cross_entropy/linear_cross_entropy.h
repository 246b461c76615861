// linear_cross_entropy: the loss of a language-model head without ever holding all logits: token chunks go
// through the head once, and their gradients are formed at once, so a step needs two head products and one
// chunk of memory.
#pragma once

#include <ATen/core/Tensor.h>

namespace ether::ops {

// hidden: (T, d), weight: (V, d), targets: (T) int64 with -100 = ignored -> the summed negative log
// likelihood, a scalar in the accumulation dtype. Differentiable in hidden and, if it is trained, weight.
at::Tensor linear_cross_entropy(const at::Tensor& hidden, const at::Tensor& weight,
                                const at::Tensor& targets);

// What it takes beside its arguments and their gradients for hidden (tokens, .) and weight (classes, .).
int64_t linear_cross_entropy_bytes(int64_t tokens, int64_t classes, at::ScalarType dtype, at::Device device);

}  // namespace ether::ops
