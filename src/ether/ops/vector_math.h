// Functions of scalars, written so that compilers vectorise the loops around them, and of vectors.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

#include "ether/ops/vector.h"

namespace ether::ops {

// e^r for |r| <= ln(2)/2: a degree-6 Taylor-like minimax polynomial (coefficients as in Cephes' expf, Moshier
// 1989). F: float or a vector of them.
template <typename F>
ETHER_INLINE F exp_near_zero(const F& r) {
    F p = r * 1.9875691500e-4F + 1.3981999507e-3F;
    p = p * r + 8.3334519073e-3F;
    p = p * r + 4.1665795894e-2F;
    p = p * r + 1.6666665459e-1F;
    p = p * r + 5.0000001201e-1F;
    return p * r * r + r + 1.0F;
}

// 1.5 * 2^23: a float that this was added to is rounded to an integer, which stands in its lowest bits. (A
// conversion would have no answer for NaN.)
inline constexpr float kRound = 12582912.0F;

// e^x to 2 units in the last place for x <= 88; 0 below -87.3; NaN for NaN.
inline float exp(float x) {
    const float clamped = std::min(std::max(x, -87.3F), 88.0F);
    const float shifted = clamped * 1.44269504F + kRound, k = shifted - kRound;
    const float r = (clamped - k * 0.693359375F) + k * 2.12194440e-4F;
    const auto scale = std::bit_cast<float>((std::bit_cast<uint32_t>(shifted) + 127) << 23);
    return x < -87.3F ? 0.0F : exp_near_zero(r) * scale;
}
inline double exp(double x) { return std::exp(x); }

// The same function, lane by lane.
template <typename V>
ETHER_INLINE V exp(const V& x) {
    if constexpr (std::is_same_v<LaneOf<V>, double>) {
        V y;
        for (size_t lane = 0; lane < sizeof(V) / sizeof(double); ++lane) y[lane] = std::exp(x[lane]);
        return y;
    } else {
        const V low = V{} - 87.3F, high = V{} + 88.0F;
        auto clamped = x < low ? low : x;
        clamped = clamped > high ? high : clamped;
        const V shifted = clamped * 1.44269504F + kRound, k = shifted - kRound;
        const V r = (clamped - k * 0.693359375F) + k * 2.12194440e-4F;
        const auto scale = (V)(((Vector<uint32_t, sizeof(V)>)shifted + 127) << 23);
        return x < low ? V{} : exp_near_zero(r) * scale;
    }
}

// Sum of x[j] * v[j] over n values, in v's type.
template <typename X, typename P>
P dot(const X* x, const P* v, int64_t n) {
    P sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < n; ++j) sum += static_cast<P>(x[j]) * v[j];
    return sum;
}

// erf to 4e-7 (absolute): 1 - erf(x) = exp(-x^2) t P(t) with t = 1 / (1 + 0.45 x) for x >= 0, P fitted by
// least squares. gaussian: exp(-x^2), which callers need beside it.
template <typename V>
ETHER_INLINE V erf(const V& x, V* gaussian) {
    *gaussian = exp(-(x * x));
    if constexpr (std::is_same_v<LaneOf<V>, double>) {
        V y;
        for (size_t lane = 0; lane < sizeof(V) / sizeof(double); ++lane) y[lane] = std::erf(x[lane]);
        return y;
    } else {
        const V t = 1 / (1 + 0.45F * (x < 0 ? -x : x));
        V p = V{} + 0.0925746933F;
        p = p * t - 0.494128674F;
        p = p * t + 0.857216358F;
        p = p * t - 0.375854105F;
        p = p * t + 0.460200906F;
        p = p * t + 0.200999916F;
        p = p * t + 0.258990914F;
        const V positive = 1 - *gaussian * t * p;
        return x < 0 ? -positive : positive;
    }
}

template <typename T>
ETHER_INLINE T sigmoid(const T& x) {
    return 1 / (1 + exp(-x));
}

}  // namespace ether::ops
