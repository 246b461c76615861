// overlay: the product with a matrix of which few entries are not zero: what a sparse change of a weight
// adds.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "ether/ops/rows/rows.h"

namespace ether::ops {

// Where a matrix (out, in) has entries.
struct SparsePattern {
    // indices: (k) int64, row-major in (out, in), all within it; kept on the device where values will be, by
    // default their own.
    SparsePattern(const at::Tensor& indices, int64_t out, int64_t in, std::optional<at::Device> device = {});

    int64_t size() const { return static_cast<int64_t>(rows.size()); }

    at::Tensor indices;
    int64_t out, in;
    std::vector<int32_t> rows, columns;  // of each entry
};
using SparsePatterns = std::vector<std::shared_ptr<const SparsePattern>>;

// x (T, in) -> (T, out): y_row = sum of value * x_column. One pattern, or one for each entry of a bank, of
// which bank_rows, (T) int32, picks a token's. values: those of all patterns, one after the other.
// Differentiable in x and values.
Rows::Value overlay(Rows& rows, Rows::Value x, const SparsePatterns& patterns, const at::Tensor& values,
                    const at::Tensor& bank_rows = {});

}  // namespace ether::ops
