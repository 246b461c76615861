// How a tile of attention hands its operands to tile_product: float32 and float64 as they lie, bfloat16 in
// pairs along the dimension that is summed over. Torch-free.
#pragma once

#include <bit>

#include "ether/ops/gemm/tile.h"

namespace ether::ops {

// x (rows, n), as it lies, to be summed over n. In pairs n and the rows' stride are even.
template <typename S>
Strided<const Unit<S>> over_columns(const S* x, int64_t stride) {
    return {reinterpret_cast<const Unit<S>*>(x), units<S>(stride)};
}

// x (rows, n) of full precision, to be summed over n, in scratch where it must be rounded first.
template <typename S>
Strided<const Unit<S>> over_columns(const Wide<S>* x, int64_t rows, int64_t n, Unit<S>* scratch) {
    if constexpr (kInPairs<S>) {
        convert(x, reinterpret_cast<S*>(scratch), rows * n);
        return {scratch, units<S>(n)};
    } else {
        return {x, n};
    }
}

// x (rows, n) of either precision, to be summed over its rows, in scratch (units(rows), n) where they make
// pairs; a last one without a partner gets zeros.
template <typename S, typename X>
Strided<const Unit<S>> over_rows(const X* x, int64_t stride, int64_t rows, int64_t n, Unit<S>* scratch) {
    if constexpr (kInPairs<S>) {
        auto* to = reinterpret_cast<float*>(scratch);  // bits of a pair
        for_values<float>(n, [&](int64_t j, auto lanes) {
            for (int64_t r = 0; r < rows; r += 2) {
                const X* at = x + r * stride + j;
                auto pair = bfloat16_bits(load<float>(at, lanes));
                if (r + 1 < rows) pair |= bfloat16_bits(load<float>(at + stride, lanes)) << 16;
                store<float>(to + r / 2 * n + j, std::bit_cast<decltype(load<float>(at, lanes))>(pair),
                             lanes);
            }
        });
        return {scratch, n};
    } else {
        return {x, stride};
    }
}

// Without its first rows.
template <typename U>
Strided<U> from_row(const Strided<U>& x, int64_t row) {
    return {x.data + row * x.row, x.row, x.column};
}

template <typename U>
Strided<U> transposed(const Strided<U>& x) {
    return {x.data, x.column, x.row};
}

}  // namespace ether::ops
