// overlay: the product with a matrix of which few entries are not zero: what a sparse change of a weight
// adds.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "ether/ops/rows/rows.h"

namespace ether::ops {

// Rows and columns (2, k), int32, of row-major numbers (k), int64, in a matrix (out, in).
at::Tensor places_of(const at::Tensor& numbers, int64_t in);

// Where a matrix (out, in) has entries.
struct SparsePattern {
    // places: their rows and columns, (2, k) int32, all within the matrix; on the device where values will
    // be.
    SparsePattern(at::Tensor places, int64_t out, int64_t in);

    int64_t size() const { return places.size(1); }
    // Row-major numbers (k), int64: made anew, as places take a third of the memory of both.
    at::Tensor numbers() const;

    at::Tensor places;
    int64_t out, in;
};
using SparsePatterns = std::vector<std::shared_ptr<const SparsePattern>>;

// x (T, in) -> (T, out): y_row = sum of value * x_column. One pattern, or one for each entry of a bank, of
// which bank_rows, (T) int32, picks a token's. values: those of all patterns, one after the other.
// Differentiable in x and values.
Rows::Value overlay(Rows& rows, Rows::Value x, const SparsePatterns& patterns, const at::Tensor& values,
                    const at::Tensor& bank_rows = {});

}  // namespace ether::ops
