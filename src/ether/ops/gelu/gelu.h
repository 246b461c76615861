// gelu: x Phi(x) with the normal distribution Phi (Hendrycks and Gimpel, arXiv 1606.08415), by erf and not by
// tanh.
#pragma once

#include "ether/ops/rows/rows.h"

namespace ether::ops {

Rows::Value gelu(Rows& rows, Rows::Value x);

}  // namespace ether::ops
