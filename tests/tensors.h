// Helpers for tests that compare tensors: reproducible random values, and closeness relative to the
// reference's size.
#pragma once

#include <ATen/Functions.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "ether/core/random.h"

namespace ether::test {

// Standard normal values that depend on (seed, index) alone.
inline at::Tensor normal(at::IntArrayRef shape, uint64_t seed, at::ScalarType dtype = at::kDouble) {
    auto values = at::empty(shape, at::kDouble);
    double* out = values.mutable_data_ptr<double>();
    const Random random(seed);
    for (int64_t i = 0; i < values.numel(); ++i) out[i] = random.normal(static_cast<uint64_t>(i));
    return values.to(dtype);
}

inline double largest(const at::Tensor& t) {
    return t.numel() ? t.to(at::kDouble).abs().max().item<double>() : 0;
}

// Largest difference relative to max(1, largest reference value).
inline double distance(const at::Tensor& actual, const at::Tensor& expected) {
    return largest(actual.detach().to(at::kDouble) - expected.detach().to(at::kDouble)) /
           std::max(1.0, largest(expected));
}

inline testing::AssertionResult near(const at::Tensor& actual, const at::Tensor& expected, double tolerance) {
    if (!actual.defined() || !expected.defined()) return testing::AssertionFailure() << "an undefined tensor";
    if (actual.sizes() != expected.sizes())
        return testing::AssertionFailure() << "shape " << actual.sizes() << ", expected " << expected.sizes();
    const double found = distance(actual, expected);
    if (found <= tolerance) return testing::AssertionSuccess();  // false for NaN
    return testing::AssertionFailure() << "relative distance " << found << ", allowed " << tolerance;
}

}  // namespace ether::test
