// One register's values at once, in the compiler's own vector type: 64 bytes of AVX-512, 32 of AVX2, 16 of
// NEON. Loops are written once for all sizes; for_best_isa (isa.h) compiles them for the machine. (A vector
// that is larger than a register lives in memory: three times slower under AVX2.) Torch-free.
#pragma once

#include <c10/util/BFloat16.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "ether/ops/isa.h"

#define ETHER_INLINE [[gnu::always_inline]] inline

#pragma GCC diagnostic ignored "-Wpsabi"  // all of it is inlined, so no vector is passed to a function

namespace ether::ops {

template <typename P, int bytes>
struct VectorOf {
    typedef P type __attribute__((vector_size(bytes)));
};
template <typename P, int bytes>
using Vector = typename VectorOf<P, bytes>::type;

inline constexpr int kWidest = 64;  // of any instruction set's vectors
template <typename P, int bytes = kWidest>
inline constexpr int64_t kLanes = bytes / sizeof(P);

// The type of a vector's values.
template <typename V>
using LaneOf = std::remove_cvref_t<decltype(std::declval<V>()[0])>;

template <typename P, int bytes>
ETHER_INLINE Vector<P, bytes> zeros(Isa<bytes>) {
    return Vector<P, bytes>{};
}

// Which lanes a step takes: all, the first ones of a vector that may be read and written whole, or the first
// ones, where memory ends behind them.
template <int bytes>
struct AllLanes {};
template <typename P, int bytes>
struct SomeLanes {
    Vector<P, bytes> mask;  // all bits of the lanes that count
};
template <int bytes>
struct FirstLanes {
    int64_t count;
};

template <typename V>
ETHER_INLINE V blend(const V& mask, const V& a, const V& b) {
    using Bits = decltype(a == b);
    return (V)(((Bits)mask & (Bits)a) | (~(Bits)mask & (Bits)b));
}

// Values from p, widened to P; lanes that do not count are 0.
template <typename P, int bytes, typename X>
ETHER_INLINE Vector<P, bytes> load(const X* p, AllLanes<bytes>) {
    Vector<P, bytes> v;
    if constexpr (std::is_same_v<X, P>) {
        std::memcpy(&v, p, sizeof(v));
    } else {
        static_assert(std::is_same_v<X, c10::BFloat16> && std::is_same_v<P, float>);
        Vector<uint16_t, bytes / 2> halves;
        std::memcpy(&halves, p, sizeof(halves));
        // The same bits.
        v = (Vector<float, bytes>)(__builtin_convertvector(halves, Vector<uint32_t, bytes>) << 16);
    }
    return v;
}
template <typename P, int bytes, typename X>
ETHER_INLINE Vector<P, bytes> load(const X* p, const SomeLanes<P, bytes>& lanes) {
    return blend(lanes.mask, load<P>(p, AllLanes<bytes>()), Vector<P, bytes>{});
}
template <typename P, int bytes, typename X>
ETHER_INLINE Vector<P, bytes> load(const X* p, FirstLanes<bytes> lanes) {
    Vector<P, bytes> v = {};
    for (int64_t lane = 0; lane < lanes.count; ++lane) v[lane] = static_cast<P>(p[lane]);
    return v;
}

// Rounded to the nearest bfloat16, ties to even; NaN stays NaN. In the low halves.
template <typename V>
ETHER_INLINE auto bfloat16_bits(const V& v) {
    using Words = Vector<uint32_t, sizeof(V)>;
    const auto words = (Words)v;
    const Words rounded = (words + 0x7fff + ((words >> 16) & 1)) >> 16, nan = Words{} + 0x7fc0;
    return v == v ? rounded : nan;
}

// The lanes that count to p; bfloat16 is rounded.
template <typename P, int bytes, typename X>
ETHER_INLINE void store(X* p, const Vector<P, bytes>& v, AllLanes<bytes>) {
    if constexpr (std::is_same_v<X, P>) {
        std::memcpy(p, &v, sizeof(v));
    } else {
        static_assert(std::is_same_v<X, c10::BFloat16> && std::is_same_v<P, float>);
        const auto halves = __builtin_convertvector(bfloat16_bits(v), Vector<uint16_t, bytes / 2>);
        std::memcpy(p, &halves, sizeof(halves));
    }
}
template <typename P, int bytes, typename X>
ETHER_INLINE void store(X* p, const Vector<P, bytes>& v, const SomeLanes<P, bytes>& lanes) {
    store<P>(p, blend(lanes.mask, v, load<P>(p, AllLanes<bytes>())), AllLanes<bytes>());
}
template <typename P, int bytes, typename X>
ETHER_INLINE void store(X* p, const Vector<P, bytes>& v, FirstLanes<bytes> lanes) {
    for (int64_t lane = 0; lane < lanes.count; ++lane) p[lane] = static_cast<X>(v[lane]);
}

// Calls body(first, lanes) for 0..n in steps of a vector. room >= n: values from 0 on that may be read and
// written.
template <typename P, int bytes, typename Body>
ETHER_INLINE void for_vectors(Isa<bytes>, int64_t n, int64_t room, Body&& body) {
    constexpr int64_t step = kLanes<P, bytes>;
    int64_t j = 0;
    for (; j + step <= n; j += step) body(j, AllLanes<bytes>());
    if (j == n) return;
    if (j + step <= room) {
        using Lane = std::conditional_t<sizeof(P) == 4, int32_t, int64_t>;
        Vector<Lane, bytes> lane = {};
        for (int64_t i = 0; i < step; ++i) lane[i] = static_cast<Lane>(i);
        body(j, SomeLanes<P, bytes>{(Vector<P, bytes>)(lane < static_cast<Lane>(n - j))});
    } else {
        body(j, FirstLanes<bytes>{n - j});
    }
}

// Calls body(first, lanes) over n values, compiled for the machine.
template <typename P, typename Body>
void for_values(int64_t n, Body&& body) {
    for_best_isa([&](auto isa) { for_vectors<P>(isa, n, n, body); });
}

// Values of one precision in another; bfloat16 is rounded.
template <typename From, typename To>
void convert(const From* from, To* to, int64_t count) {
    using P = std::conditional_t<std::is_same_v<From, double>, double, float>;
    for_values<P>(count,
                  [&](int64_t j, const auto& lanes) { store<P>(to + j, load<P>(from + j, lanes), lanes); });
}

template <typename P, typename V>
ETHER_INLINE P sum_of(const V& v) {
    if constexpr (sizeof(V) > 16) {
        Vector<P, sizeof(V) / 2> halves[2];
        std::memcpy(halves, &v, sizeof(v));
        return sum_of<P>(halves[0] + halves[1]);
    } else {
        P sum = 0;
        for (size_t lane = 0; lane < sizeof(V) / sizeof(P); ++lane) sum += v[lane];
        return sum;
    }
}

// Of every group of neighbouring lanes of a, then of b, the first half, or the second one.
template <int group, bool second, typename V, int... lane>
ETHER_INLINE V half_groups(const V& a, const V& b, std::integer_sequence<int, lane...>) {
    constexpr int half = group / 2;
    return __builtin_shufflevector(a, b, (lane / half * group + lane % half + (second ? half : 0))...);
}

// The sum of each vector's lanes, several vectors to a step: sums[i] of v[i].
template <typename P, int count, typename V>
ETHER_INLINE void sums_of(const V* v, P* sums) {
    constexpr int lanes = sizeof(V) / sizeof(P);
    if constexpr (count > lanes) {
        sums_of<P, lanes>(v, sums);
        sums_of<P, count - lanes>(v + lanes, sums + lanes);
    } else {
        V parts[count];  // each of groups of lanes that belong to one vector
        for (int i = 0; i < count; ++i) parts[i] = v[i];
        auto fold = [&]<int parts_left, int group>(auto& again, std::integral_constant<int, parts_left>,
                                                   std::integral_constant<int, group>)
            __attribute__((always_inline)) {
            if constexpr (group > 1) {
                constexpr int next = (parts_left + 1) / 2;
                constexpr auto all = std::make_integer_sequence<int, lanes>();
                for (int i = 0; i < next; ++i) {
                    const V a = parts[2 * i], b = parts[std::min(2 * i + 1, parts_left - 1)];
                    parts[i] = half_groups<group, false>(a, b, all) + half_groups<group, true>(a, b, all);
                }
                again(again, std::integral_constant<int, next>(), std::integral_constant<int, group / 2>());
            }
        };
        fold(fold, std::integral_constant<int, count>(), std::integral_constant<int, lanes>());
        for (int i = 0; i < count; ++i) sums[i] = parts[0][i];
    }
}

}  // namespace ether::ops
