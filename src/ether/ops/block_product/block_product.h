// block_product: rotations of a feature axis in pieces, as a part of a graph: what block-diagonal forms are
// made of. Each piece of a few tokens is a product of small matrices that stay in the cache.
#pragma once

#include "ether/ops/rows/rows.h"

namespace ether::ops {

// Whether matrices (n, in, out) are for block_product: several, small and of whole vectors. Others are faster
// as products of all tokens.
bool suits_block_product(const at::Tensor& blocks);

// Piece by piece y_i = x_i B_i: blocks (n, in, out), x (T, n * in) -> (T, n * out); (1, in, out) is one for
// all pieces. Differentiable in x and blocks, which are of the graph's compute dtype.
Rows::Value block_product(Rows& rows, Rows::Value x, const at::Tensor& blocks);

}  // namespace ether::ops
