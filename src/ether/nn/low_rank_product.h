// A low-rank branch added to a product, which keeps its input for A's gradient only where that cannot be made
// again from values that are kept anyway.
#pragma once

#include <memory>

#include "ether/nn/forms.h"
#include "ether/ops/rows/rows.h"

namespace ether::nn {

// y + scale (h a^T) b^T, where h (T, in) is x behind dropouts: y (T, out), a (r, in), b (out, r), all of one
// dtype; in y's own memory where in_place says that nobody else reads it. remade: where x can be had again,
// if not null; then neither x nor h is kept.
at::Tensor plus_low_rank(const at::Tensor& y, const at::Tensor& x, const Chain& dropouts,
                         const FormPass& pass, const at::Tensor& a, const at::Tensor& b, double scale,
                         bool in_place, std::shared_ptr<ops::Remade> remade);

}  // namespace ether::nn
