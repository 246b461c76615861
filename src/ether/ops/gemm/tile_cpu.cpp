#include "ether/ops/gemm/tile.h"
#include "ether/ops/isa.h"

namespace ether::ops {
namespace {

// R rows by C vectors of c stay in registers while k goes by.
template <int R, int C, int bytes, typename T, typename Lanes>
ETHER_INLINE void block(Isa<bytes>, int64_t k, T alpha, Strided<const T> a, Strided<const T> b, Strided<T> c,
                        bool accumulate, const Lanes& lanes) {
    constexpr int64_t step = kLanes<T, bytes>;
    Vector<T, bytes> sums[R][C] = {};
    for (int64_t i = 0; i < k; ++i) {
        Vector<T, bytes> row[C];
        for (int v = 0; v < C; ++v) row[v] = load<T>(b.data + i * b.row + v * step, lanes);
        for (int r = 0; r < R; ++r) {
            const T factor = a.data[r * a.row + i * a.column];
            for (int v = 0; v < C; ++v) sums[r][v] += factor * row[v];
        }
    }
    for (int r = 0; r < R; ++r)
        for (int v = 0; v < C; ++v) {
            T* to = c.data + r * c.row + v * step;
            const auto value = alpha * sums[r][v];
            store<T>(to, accumulate ? value + load<T>(to, lanes) : value, lanes);
        }
}

template <int C, int bytes, typename T, typename Lanes>
ETHER_INLINE void columns(Isa<bytes> isa, int64_t m, int64_t k, T alpha, Strided<const T> a,
                          Strided<const T> b, Strided<T> c, bool accumulate, const Lanes& lanes) {
    auto rows = [&]<int R>(std::integral_constant<int, R>) {
        block<R, C>(isa, k, alpha, a, b, c, accumulate, lanes);
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

}  // namespace

template <typename T>
void tile_product(int64_t m, int64_t n, int64_t k, T alpha, Strided<const T> a, Strided<const T> b,
                  Strided<T> c, bool accumulate) {
    for_best_isa([&]<int bytes>(Isa<bytes> isa) {
        auto vectors = [&]<int C, int size>(std::integral_constant<int, C>, Isa<size> length) {
            constexpr int64_t width = C * kLanes<T, size>;
            for (; n >= width; n -= width, b.data += width, c.data += width)
                columns<C>(length, m, k, alpha, a, b, c, accumulate, AllLanes<size>());
        };
        // 24 of 32 registers for sums (AVX-512, NEON), 12 of AVX2's 16.
        if constexpr (bytes != 32) vectors(std::integral_constant<int, 4>(), isa);
        vectors(std::integral_constant<int, 2>(), isa);
        // The rest in ever shorter vectors.
        vectors(std::integral_constant<int, 1>(), isa);
        if constexpr (bytes > 32) vectors(std::integral_constant<int, 1>(), Isa<32>());
        if constexpr (bytes > 16) vectors(std::integral_constant<int, 1>(), Isa<16>());
        if (n > 0) columns<1>(Isa<16>(), m, k, alpha, a, b, c, accumulate, FirstLanes<16>{n});
    });
}

template void tile_product<float>(int64_t, int64_t, int64_t, float, Strided<const float>,
                                  Strided<const float>, Strided<float>, bool);
template void tile_product<double>(int64_t, int64_t, int64_t, double, Strided<const double>,
                                   Strided<const double>, Strided<double>, bool);

}  // namespace ether::ops
