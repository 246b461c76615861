// swiglu: silu(gate) * up (Shazeer, arXiv 2002.05202).
#pragma once

#include "ether/ops/rows/rows.h"

namespace ether::ops {

// gate, up: of one width.
Rows::Value swiglu(Rows& rows, Rows::Value gate, Rows::Value up);

}  // namespace ether::ops
