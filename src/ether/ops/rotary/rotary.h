// rotary: rotary position embedding (Su et al., arXiv 2104.09864) in transformers' half-split layout:
// (a, b) -> (a cos - b sin, b cos + a sin) for the first and second half of each head.
#pragma once

#include <ATen/core/Tensor.h>

namespace ether::ops {

// x: (T, heads * head_dim); positions: (T) int64; cos, sin: (positions, head_dim / 2) in the accumulation
// dtype. Differentiable in x.
at::Tensor rotary(const at::Tensor& x, const at::Tensor& positions, const at::Tensor& cos,
                  const at::Tensor& sin);

}  // namespace ether::ops
