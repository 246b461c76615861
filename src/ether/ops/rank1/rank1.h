// Rank1: block-wise y = x + sum_k c_k left_k (right_k . x), the form of ETHER (c = -2, left = right = u/|u|),
// ETHER+ (-1 and +1) and Householder chains (ETHER, arXiv 2405.20271, section 3). Differentiable in x, left,
// right.
#pragma once

#include <vector>

#include "ether/ops/rows/rows.h"

namespace ether::ops {

// left, right: (terms <= 4, n, d/n), or (bank, terms, n, d/n) with `bank_rows` (T) int32, which picks the
// bank entry of each token; float64 for a float64 graph, else float32. coefficients: one per term.
Rows::Value rank1(Rows& rows, Rows::Value x, const at::Tensor& left, const at::Tensor& right,
                  const std::vector<double>& coefficients, const at::Tensor& bank_rows = {});

// The same for x (T, d) alone.
at::Tensor rank1(const at::Tensor& x, const at::Tensor& left, const at::Tensor& right,
                 const std::vector<double>& coefficients, const at::Tensor& bank_rows = {});

}  // namespace ether::ops
