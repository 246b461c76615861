// dropout: inverted dropout whose mask is a function of (key, element index), so backward stores nothing.
#pragma once

#include "ether/core/random.h"
#include "ether/ops/rows/rows.h"

namespace ether::ops {

// x kept with probability 1 - p and then scaled by 1 / (1 - p); p = 0 gives x. The mask is random's; rows are
// counted from first_row, so that a batch in pieces drops what it drops whole.
Rows::Value dropout(Rows& rows, Rows::Value x, double p, const Random& random, int64_t first_row = 0);

// The factors of elements counted by index (int64): 0, or 1 / (1 - p) where keep() (core/random.h) keeps one.
at::Tensor keep_scales(uint64_t key, const at::Tensor& index, double p, at::ScalarType dtype);

// The same for x (T, d) alone.
at::Tensor dropout(const at::Tensor& x, double p, const Random& random, int64_t first_row = 0);

}  // namespace ether::ops
