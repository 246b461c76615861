// Products of small tiles in the calling thread, for kernels whose operands are in the cache already;
// torch-free. Where MKL's call costs more than it computes (a text of 17 tokens, heads of 32), and 1.3 times
// its speed on larger tiles.
#pragma once

#include <cstdint>
#include <type_traits>

#include "ether/ops/vector.h"

namespace ether::ops {

// An operand or result: value (i, j) is data[i * row + j * column].
template <typename T>
struct Strided {
    T* data;
    int64_t row, column = 1;
};

// Two bfloat16 values that are neighbours along the dimension that a product sums over.
struct Pair {
    c10::BFloat16 first, second;
};

// S: what operands are stored in.
template <typename S>
inline constexpr bool kInPairs = std::is_same_v<S, c10::BFloat16>;
// What sums are held in.
template <typename S>
using Wide = std::conditional_t<kInPairs<S>, float, S>;
// What tile_product reads.
template <typename S>
using Unit = std::conditional_t<kInPairs<S>, Pair, S>;

// Units that hold n values along the sum.
template <typename S>
constexpr int64_t units(int64_t n) {
    return kInPairs<S> ? (n + 1) / 2 : n;
}

// c (m, n) = alpha * a (m, k) b (k, n), added to what c holds if `accumulate`. Columns of b and c are
// adjacent. Fastest where n is a multiple of kLanes<T>, slow where it is not one of 16 bytes; a may be
// transposed at no cost.
template <typename T>
void tile_product(int64_t m, int64_t n, int64_t k, T alpha, Strided<const T> a, Strided<const T> b,
                  Strided<T> c, bool accumulate = false);
// The same in bfloat16, summed in float32; k counts pairs.
void tile_product(int64_t m, int64_t n, int64_t k, float alpha, Strided<const Pair> a, Strided<const Pair> b,
                  Strided<float> c, bool accumulate = false);

// n rounded up to whole vectors.
template <typename T>
constexpr int64_t padded(int64_t n) {
    return (n + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
}

}  // namespace ether::ops
