// dropout: inverted dropout whose mask is a function of (key, element index), so backward stores nothing.
#pragma once

#include <ATen/core/Tensor.h>

#include "ether/core/random.h"

namespace ether::ops {

// x (rows, ...), kept with probability 1 - p and then scaled by 1 / (1 - p); p = 0 returns x. The mask is
// random's; rows are counted from first_row, so that a batch in pieces drops what it drops whole.
at::Tensor dropout(const at::Tensor& x, double p, const Random& random, int64_t first_row = 0);

}  // namespace ether::ops
