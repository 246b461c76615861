// 64 bytes of values at once, in the compiler's own vector type: one AVX-512 register, two of AVX2, four of
// NEON. Loops are written once; for_best_isa (isa.h) compiles them for the machine. Torch-free.
#pragma once

#include <c10/util/BFloat16.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "ether/ops/isa.h"

#define ETHER_INLINE [[gnu::always_inline]] inline

#pragma GCC diagnostic ignored "-Wpsabi"  // all of it is inlined, so no vector is passed to a function

namespace ether::ops {

template <typename P>
struct VectorOf {
    typedef P type __attribute__((vector_size(64)));
};
template <typename P>
using Vector = typename VectorOf<P>::type;
template <typename P>
inline constexpr int64_t kLanes = 64 / sizeof(P);

typedef uint16_t Halves __attribute__((vector_size(32)));
typedef uint32_t Words __attribute__((vector_size(64)));

// How many lanes a step takes: all (AllLanes), the first ones of a vector that may be read and written whole
// (SomeLanes), or as many as memory there is (int64_t).
struct AllLanes {};
template <typename P>
struct SomeLanes {
    Vector<P> mask;  // all bits of the lanes that count
};

template <typename P>
ETHER_INLINE Vector<P> blend(const Vector<P>& mask, const Vector<P>& a, const Vector<P>& b) {
    using Bits = decltype(a == b);
    return (Vector<P>)(((Bits)mask & (Bits)a) | (~(Bits)mask & (Bits)b));
}

// Values from p, widened to P; lanes that do not count are 0.
template <typename P, typename X, typename Lanes>
ETHER_INLINE Vector<P> load(const X* p, const Lanes& lanes) {
    Vector<P> v = {};
    if constexpr (std::is_same_v<Lanes, int64_t>) {
        for (int64_t lane = 0; lane < lanes; ++lane) v[lane] = static_cast<P>(p[lane]);
    } else {
        if constexpr (std::is_same_v<X, P>) {
            std::memcpy(&v, p, sizeof(v));
        } else {
            static_assert(std::is_same_v<X, c10::BFloat16> && std::is_same_v<P, float>);
            Halves halves;
            std::memcpy(&halves, p, sizeof(halves));
            v = (Vector<float>)(__builtin_convertvector(halves, Words) << 16);  // the same bits
        }
        if constexpr (std::is_same_v<Lanes, SomeLanes<P>>) v = blend<P>(lanes.mask, v, Vector<P>{});
    }
    return v;
}

// The lanes that count to p; bfloat16 rounds to the nearest, ties to even, and keeps NaN.
template <typename P, typename X, typename Lanes>
ETHER_INLINE void store(X* p, const Vector<P>& v, const Lanes& lanes) {
    if constexpr (std::is_same_v<Lanes, int64_t>) {
        for (int64_t lane = 0; lane < lanes; ++lane) p[lane] = static_cast<X>(v[lane]);
    } else if constexpr (std::is_same_v<Lanes, SomeLanes<P>>) {
        store<P>(p, blend<P>(lanes.mask, v, load<P>(p, AllLanes())), AllLanes());
    } else if constexpr (std::is_same_v<X, P>) {
        std::memcpy(p, &v, sizeof(v));
    } else {
        static_assert(std::is_same_v<X, c10::BFloat16> && std::is_same_v<P, float>);
        const auto words = (Words)v;
        const Words rounded = (words + 0x7fff + ((words >> 16) & 1)) >> 16, nan = Words{} + 0x7fc0;
        const Halves halves = __builtin_convertvector(v == v ? rounded : nan, Halves);
        std::memcpy(p, &halves, sizeof(halves));
    }
}

// Calls body(first, lanes) for 0..n in steps of a vector. room >= n: values from 0 on that may be read and
// written.
template <typename P, typename Body>
ETHER_INLINE void for_vectors(int64_t n, int64_t room, Body&& body) {
    int64_t j = 0;
    for (; j + kLanes<P> <= n; j += kLanes<P>) body(j, AllLanes());
    if (j == n) return;
    if (j + kLanes<P> <= room) {
        using Bits = decltype(Vector<P>{} == Vector<P>{});
        using Lane = std::conditional_t<sizeof(P) == 4, int32_t, int64_t>;
        Bits lane = {};
        for (int64_t i = 0; i < kLanes<P>; ++i) lane[i] = static_cast<Lane>(i);
        body(j, SomeLanes<P>{(Vector<P>)(lane < static_cast<Lane>(n - j))});
    } else {
        body(j, n - j);
    }
}

// Calls body(first, lanes) over n values, compiled for the machine.
template <typename P, typename Body>
void for_values(int64_t n, Body&& body) {
    for_best_isa([&] { for_vectors<P>(n, n, body); });
}

template <typename P>
ETHER_INLINE P sum_of(const Vector<P>& v) {
    typedef P Half __attribute__((vector_size(32)));
    typedef P Quarter __attribute__((vector_size(16)));
    Half half[2];
    std::memcpy(half, &v, sizeof(v));
    half[0] += half[1];
    Quarter quarter[2];
    std::memcpy(quarter, half, sizeof(quarter));
    quarter[0] += quarter[1];
    P sum = 0;
    for (size_t lane = 0; lane < sizeof(Quarter) / sizeof(P); ++lane) sum += quarter[0][lane];
    return sum;
}

}  // namespace ether::ops
