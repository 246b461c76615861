// The one place that turns a tensor's dtype into a C++ type; nothing else switches over dtypes.
#pragma once

#include <ATen/core/Tensor.h>

#include "ether/core/error.h"

namespace ether::ops {

// Calls body(Type{}) with float, double or at::BFloat16; other dtypes are refused, naming the op.
template <typename Body>
auto dispatch(at::ScalarType dtype, const char* op, Body&& body) {
    switch (dtype) {
        case at::kFloat:
            return body(float{});
        case at::kDouble:
            return body(double{});
        case at::kBFloat16:
            return body(at::BFloat16{});
        default:
            fail(ErrorKind::model, "{}: dtype {} is not supported, expected float32, bfloat16 or float64", op,
                 c10::toString(dtype));
    }
}

// The type in which an op accumulates and in which adapters hold their parameters: double for double, else
// float.
template <typename T>
struct Accumulate {
    using type = float;
};
template <>
struct Accumulate<double> {
    using type = double;
};
template <typename T>
using accumulate_t = typename Accumulate<T>::type;

inline at::ScalarType accumulate_dtype(at::ScalarType dtype) {
    return dtype == at::kDouble ? at::kDouble : at::kFloat;
}

}  // namespace ether::ops
