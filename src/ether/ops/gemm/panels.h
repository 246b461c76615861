// Products with a weight that comes from memory: packed a panel at a time, 64 columns of the result, each
// fetched into the cache while the one before is multiplied. Torch-free.
//
// A pass over a model's layers leaves no weight in the cache, and a library's product waits for it before it
// packs. In steps of a 135M model on Zen 4, a core of two (docs/performance.md): float32 forward 110 GFLOP/s
// beside oneDNN's 98 to 104; bfloat16 215 beside 195. The way back in float32, where nothing is to be
// transposed, is no faster than oneDNN's and is left to it.
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
// row depend on neither the other rows nor the number of threads. Columns of x and w are adjacent, rows of a
// bfloat16 x an even number of values apart.
template <typename T>
void panel_product(int64_t rows, int64_t out, int64_t in, Strided<const T> x, Strided<const T> w,
                   WeightOrder order, const T* bias, T* y);

}  // namespace ether::ops
