// permute: features in another order.
#pragma once

#include "ether/ops/rows/rows.h"

namespace ether::ops {

// y_j = x_{order_j}. order: (d) int64, each of 0..d-1 once.
Rows::Value permute(Rows& rows, Rows::Value x, const at::Tensor& order);

}  // namespace ether::ops
