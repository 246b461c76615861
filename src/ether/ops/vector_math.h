// Scalar functions written so that compilers vectorise the loops around them.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

namespace ether::ops {

// e^x to 2 units in the last place for x <= 88; 0 below -87.3. Range reduction to |r| <= ln(2)/2 and a
// degree-6 Taylor-like minimax polynomial (coefficients as in Cephes' expf, Moshier 1989).
inline float exp(float x) {
    const float clamped = std::min(std::max(x, -87.3F), 88.0F);
    const float k = std::nearbyint(clamped * 1.44269504F);
    const float r = (clamped - k * 0.693359375F) + k * 2.12194440e-4F;
    float p = 1.9875691500e-4F;
    p = p * r + 1.3981999507e-3F;
    p = p * r + 8.3334519073e-3F;
    p = p * r + 4.1665795894e-2F;
    p = p * r + 1.6666665459e-1F;
    p = p * r + 5.0000001201e-1F;
    p = p * r * r + r + 1.0F;
    const float scale = std::bit_cast<float>((static_cast<int32_t>(k) + 127) << 23);
    return x < -87.3F ? 0.0F : p * scale;
}
inline double exp(double x) { return std::exp(x); }

// Sum of x[j] * v[j] over n values, in v's type.
template <typename X, typename P>
P dot(const X* x, const P* v, int64_t n) {
    P sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < n; ++j) sum += static_cast<P>(x[j]) * v[j];
    return sum;
}

template <typename T>
T sigmoid(T x) {
    return T{1} / (T{1} + exp(-x));
}

}  // namespace ether::ops
