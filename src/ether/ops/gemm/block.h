// The loops of ops/gemm's own products: blocks of a result that stay in registers while the sum goes by.
#pragma once

#include <bit>
#include <cstdint>
#include <type_traits>

#include "ether/ops/gemm/tile.h"
#include "ether/ops/isa.h"
#include "ether/ops/vector.h"

namespace ether::ops {

// What one entry of a and a vector of b add to a vector of c. Entry: an entry's bits as a vector's lane.
template <typename T>
struct Multiply {
    using Entry = T;
    template <typename Sum>
    ETHER_INLINE static void add(Sum& sum, T factor, const Sum& row) {
        sum += factor * row;
    }
};

// The same for pairs of bfloat16. round: a vector of sums to bfloat16.
struct MultiplyPairs {
    using Entry = uint32_t;
    template <typename Sum, typename Row>
    ETHER_INLINE static void add(Sum& sum, Pair factor, const Row& row) {
        sum += static_cast<float>(factor.first) * (Sum)(row << 16);
        sum += static_cast<float>(factor.second) * (Sum)(row & 0xffff0000U);
    }
    template <typename Sum>
    ETHER_INLINE static void round(const Sum& sum, c10::BFloat16* to) {
        store<float>(to, sum, AllLanes<sizeof(Sum)>());
    }
};

// One instruction (AVX512-BF16), as assembly since intrinsics do not pass into loops that are compiled for
// several instruction sets. Nor does clang take assembly there: it asks for an operand's size before it
// inlines.
#if defined(__x86_64__) && !defined(__clang__)
#define ETHER_DOT_PAIRS
struct DotPairs {
    using Entry = uint32_t;
    template <typename Sum, typename Row>
    ETHER_INLINE static void add(Sum& sum, Pair factor, const Row& row) {
        const Row factors = Row{} + std::bit_cast<uint32_t>(factor);
        asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(factors), "v"(row));
    }
    template <typename Sum>
    ETHER_INLINE static void round(const Sum& sum, c10::BFloat16* to) {
        Vector<uint16_t, sizeof(Sum) / 2> halves;
        asm("vcvtneps2bf16 %1, %0" : "=v"(halves) : "v"(sum));
        std::memcpy(to, &halves, sizeof(halves));
    }
};
inline bool has_dot_pairs() {
    static const bool found = has_avx512() && __builtin_cpu_supports("avx512bf16");
    return found;
}
#else
inline bool has_dot_pairs() { return false; }
#endif

// Called at every step of a sum; see panels_cpu.cpp.
struct Nothing {
    ETHER_INLINE void operator()() {}
};

// R rows by C vectors of c stay in registers while k goes by.
template <typename Step, int R, int C, int bytes, typename T, typename U, typename Lanes, typename Beside>
ETHER_INLINE void block(Isa<bytes>, int64_t k, T alpha, Strided<const U> a, Strided<const U> b, Strided<T> c,
                        bool accumulate, const Lanes& lanes, Beside& beside) {
    using Entry = typename Step::Entry;
    constexpr int64_t step = kLanes<T, bytes>;
    Vector<T, bytes> sums[R][C] = {};
    for (int64_t i = 0; i < k; ++i) {
        Vector<Entry, bytes> row[C];
        for (int v = 0; v < C; ++v)
            row[v] = load<Entry>(reinterpret_cast<const Entry*>(b.data + i * b.row + v * step), lanes);
        beside();
        for (int r = 0; r < R; ++r) {
            const U factor = a.data[r * a.row + i * a.column];
            for (int v = 0; v < C; ++v) Step::add(sums[r][v], factor, row[v]);
        }
    }
    for (int r = 0; r < R; ++r)
        for (int v = 0; v < C; ++v) {
            T* to = c.data + r * c.row + v * step;
            const auto value = alpha * sums[r][v];
            store<T>(to, accumulate ? value + load<T>(to, lanes) : value, lanes);
        }
}

template <typename Step, int C, int bytes, typename T, typename U, typename Lanes, typename Beside>
ETHER_INLINE void columns(Isa<bytes> isa, int64_t m, int64_t k, T alpha, Strided<const U> a,
                          Strided<const U> b, Strided<T> c, bool accumulate, const Lanes& lanes,
                          Beside& beside) {
    auto rows = [&]<int R>(std::integral_constant<int, R>) __attribute__((always_inline)) {
        block<Step, R, C>(isa, k, alpha, a, b, c, accumulate, lanes, beside);
        m -= R, a.data += R * a.row, c.data += R * c.row;
    };
    // A block of few sums waits for each: 8 rows are 4 and 4, not 6 and 2.
    if constexpr (C == 1)
        while (m >= 8) rows(std::integral_constant<int, 8>());
    while (m >= 6 && m != 7 && m != 8) rows(std::integral_constant<int, 6>());
    while (m >= 4) rows(std::integral_constant<int, 4>());
    if (m == 3) rows(std::integral_constant<int, 3>());
    if (m == 2) rows(std::integral_constant<int, 2>());
    if (m == 1) rows(std::integral_constant<int, 1>());
}

// tile_product (tile.h) in loops for one instruction set; beside() is called at every step of each block.
template <typename Step, int bytes, typename T, typename U, typename Beside>
ETHER_INLINE void all_columns(Isa<bytes> isa, int64_t m, int64_t n, int64_t k, T alpha, Strided<const U> a,
                              Strided<const U> b, Strided<T> c, bool accumulate, Beside& beside) {
    auto vectors = [&]<int C, int size>(std::integral_constant<int, C>, Isa<size> length)
        __attribute__((always_inline)) {
        constexpr int64_t width = C * kLanes<T, size>;
        for (; n >= width; n -= width, b.data += width, c.data += width)
            columns<Step, C>(length, m, k, alpha, a, b, c, accumulate, AllLanes<size>(), beside);
    };
    // 24 of 32 registers for sums (AVX-512, NEON), 12 of AVX2's 16.
    if constexpr (bytes != 32) vectors(std::integral_constant<int, 4>(), isa);
    vectors(std::integral_constant<int, 2>(), isa);
    // The rest in ever shorter vectors.
    vectors(std::integral_constant<int, 1>(), isa);
    if constexpr (bytes > 32) vectors(std::integral_constant<int, 1>(), Isa<32>());
    if constexpr (bytes > 16) vectors(std::integral_constant<int, 1>(), Isa<16>());
    if (n > 0) columns<Step, 1>(Isa<16>(), m, k, alpha, a, b, c, accumulate, FirstLanes<16>{n}, beside);
}

}  // namespace ether::ops
