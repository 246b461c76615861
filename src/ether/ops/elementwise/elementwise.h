// Sums, and products and sums with one vector for all tokens.
#pragma once

#include "ether/ops/rows/rows.h"

namespace ether::ops {

Rows::Value add(Rows& rows, Rows::Value a, Rows::Value b);

// x * factor and x + offset. The vector: (d), any dtype, or (bank, d) with `bank_rows` (T) int32, which picks
// the entry of each token. Differentiable in both.
Rows::Value scale(Rows& rows, Rows::Value x, const at::Tensor& factor, const at::Tensor& bank_rows = {});
Rows::Value shift(Rows& rows, Rows::Value x, const at::Tensor& offset, const at::Tensor& bank_rows = {});

}  // namespace ether::ops
