// token_product: every token times a matrix of its own, picked from a bank: what low-rank and block-diagonal
// forms of many adapters in one batch are made of. One token reads its matrix once, so memory is the limit.
#pragma once

#include "ether/ops/rows/rows.h"

namespace ether::ops {

// alpha * x M, piece by piece: matrices (bank, n, in, out), x (T, n * in) -> (T, n * out); (bank, 1, in, out)
// is one for all pieces that x has. bank_rows: (T) int32, each token's entry. Differentiable in x and
// matrices, which are of the graph's compute dtype.
Rows::Value token_product(Rows& rows, Rows::Value x, const at::Tensor& matrices, const at::Tensor& bank_rows,
                          double alpha = 1);

// alpha * x M^T: matrices (bank, n, out, in), or (bank, 1, out, in).
Rows::Value token_product_transposed(Rows& rows, Rows::Value x, const at::Tensor& matrices,
                                     const at::Tensor& bank_rows, double alpha = 1);

}  // namespace ether::ops
