// dropout: inverted dropout whose mask is a function of (key, element index), so backward stores nothing.
#pragma once

#include <ATen/core/Tensor.h>

#include "ether/core/random.h"

namespace ether::ops {

// x of any shape, kept with probability 1 - p and then scaled by 1 / (1 - p); p = 0 returns x. The mask is
// random's.
at::Tensor dropout(const at::Tensor& x, double p, const Random& random);

}  // namespace ether::ops
