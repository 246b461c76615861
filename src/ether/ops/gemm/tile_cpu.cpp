#include "ether/ops/gemm/block.h"

namespace ether::ops {
namespace {

template <typename Step, typename T, typename U>
void tile_by(int64_t m, int64_t n, int64_t k, T alpha, Strided<const U> a, Strided<const U> b, Strided<T> c,
             bool accumulate) {
    for_best_isa([&]<int bytes>(Isa<bytes> isa) __attribute__((always_inline)) {
        Nothing nothing;
        all_columns<Step>(isa, m, n, k, alpha, a, b, c, accumulate, nothing);
    });
}

}  // namespace

template <typename T>
void tile_product(int64_t m, int64_t n, int64_t k, T alpha, Strided<const T> a, Strided<const T> b,
                  Strided<T> c, bool accumulate) {
    tile_by<Multiply<T>>(m, n, k, alpha, a, b, c, accumulate);
}

void tile_product(int64_t m, int64_t n, int64_t k, float alpha, Strided<const Pair> a, Strided<const Pair> b,
                  Strided<float> c, bool accumulate) {
#if defined(ETHER_DOT_PAIRS)
    if (has_dot_pairs()) return tile_by<DotPairs>(m, n, k, alpha, a, b, c, accumulate);
#endif
    tile_by<MultiplyPairs>(m, n, k, alpha, a, b, c, accumulate);
}

template void tile_product<float>(int64_t, int64_t, int64_t, float, Strided<const float>,
                                  Strided<const float>, Strided<float>, bool);
template void tile_product<double>(int64_t, int64_t, int64_t, double, Strided<const double>,
                                   Strided<const double>, Strided<double>, bool);

}  // namespace ether::ops
