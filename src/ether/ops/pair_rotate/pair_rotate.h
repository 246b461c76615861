// pair_rotate: features mixed in pairs, as 2 x 2 rotations do.
#pragma once

#include "ether/ops/rows/rows.h"

namespace ether::ops {

// y_j = cosine_j x_j + sine_j x_p(j), where p swaps the two halves of every 2 * half features. cosine, sine:
// (d), or (bank, d) with bank_rows, (T) int32, which picks each token's. Differentiable in all.
Rows::Value pair_rotate(Rows& rows, Rows::Value x, const at::Tensor& cosine, const at::Tensor& sine,
                        int64_t half, const at::Tensor& bank_rows = {});

}  // namespace ether::ops
