// rotary: rotary position embedding on the two halves of each head (Su et al., arXiv 2104.09864, in the
// layout of transformers' Llama: element j is paired with j + head_dim / 2).
#pragma once

#include "ether/ops/rows/rows.h"

namespace ether::ops {

// x: (T, heads * head_dim). positions: (T) int64. cos, sin: (max_positions, head_dim / 2) in the graph's
// compute dtype.
Rows::Value rotary(Rows& rows, Rows::Value x, const at::Tensor& positions, const at::Tensor& cos,
                   const at::Tensor& sin);

}  // namespace ether::ops
