// unit: vectors scaled to length one, the û = u/|u| of every reflection.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace ether::ops {

// v: (..., m) float32 or float64 -> v / |v| along the last axis; a zero vector is an error, since it has no
// direction, but NaN on other devices than the CPU: the loss then is. Differentiable: grad = (g - û (û
// . g)) / |v|.
at::Tensor unit(const at::Tensor& v);

// The same of many vectors, in few operations: each stack is of (n, m) tensors, all of one shape, and becomes
// one (tensors, n, m).
std::vector<at::Tensor> units(const std::vector<std::vector<at::Tensor>>& stacks);

}  // namespace ether::ops
