// block_product: a feature axis times matrices piece by piece, as a part of a graph: what rotations and
// low-rank forms are made of. A few tokens' product with a small or thin matrix stays in the cache.
#pragma once

#include "ether/ops/rows/rows.h"

namespace ether::ops {

// Whether matrices (n, in, out) are for block_product: several small ones or one that is thin, of whole
// vectors. Others are faster as products of all tokens.
bool suits_block_product(const at::Tensor& blocks);

// Piece by piece y_i = alpha * x_i B_i: blocks (n, in, out), x (T, n * in) -> (T, n * out); (1, in, out) is
// one for all pieces. Differentiable in x and blocks, which are of the graph's compute dtype.
Rows::Value block_product(Rows& rows, Rows::Value x, const at::Tensor& blocks, double alpha = 1);

}  // namespace ether::ops
