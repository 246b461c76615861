// Products with a weight that comes from memory: packed a panel at a time, 64 columns of the result, each
// fetched into the cache while the one before is multiplied. Torch-free.
//
// A pass over a model's layers leaves no weight in the cache, and a library's product waits for it before it
// packs (figures: docs/performance.md). The way back in float32, where nothing is to be transposed, gains
// nothing and is left to the library.
#pragma once

#include <cstdint>

#include "ether/ops/gemm/tile.h"

namespace ether::ops {

// How a weight lies: (out, in), row by row, or as its transpose.
enum class WeightOrder { kOutIn, kInOut };

// Whether panel_product takes such a product of T (float or c10::BFloat16), and this processor gains by it.
template <typename T>
bool has_panel_product(int64_t rows, int64_t out, int64_t in, WeightOrder order);

// y (rows, out) = x (rows, in) w^T + bias (out, or null), summed in float32, by all threads. The bits of a
// row depend on neither the other rows nor the number of threads.
//
// out is a multiple of 16; in one of 16 (float32), 32 (bfloat16, kOutIn) or 2 (bfloat16, kInOut). float32
// takes kOutIn alone. Columns of x and w are adjacent, rows of a bfloat16 x an even number of values apart.
template <typename T>
void panel_product(int64_t rows, int64_t out, int64_t in, Strided<const T> x, Strided<const T> w,
                   WeightOrder order, const T* bias, T* y);

}  // namespace ether::ops
