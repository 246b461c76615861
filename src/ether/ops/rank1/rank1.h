// Rank1: block-wise y = x + sum_k c_k left_k (right_k . x), the form of ETHER (c = -2, left = right = u/|u|),
// ETHER+ (-1 and +1) and Householder chains (ETHER, arXiv 2405.20271, section 3). Differentiable in x, left,
// right.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace ether::ops {

// x: (T, d) float32, bfloat16 or float64. left, right: (terms <= 4, n, d/n), or (bank, terms, n, d/n) with
// `rows` (T) int32, which picks the bank entry of each token; float64 for a float64 x, else float32.
// coefficients: one per term.
at::Tensor rank1(const at::Tensor& x, const at::Tensor& left, const at::Tensor& right,
                 const std::vector<double>& coefficients, const at::Tensor& rows = {});

}  // namespace ether::ops
