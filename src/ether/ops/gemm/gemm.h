// The provider of base GEMMs: every product with a frozen or trained base weight goes through here, so that
// the best library call per dtype is chosen in one place.
#pragma once

#include <ATen/core/Tensor.h>

namespace ether::ops {

// x (T, in) times weight (out, in) transposed, plus bias (out) if defined -> (T, out), in x's dtype.
at::Tensor gemm_nt(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias = {});

// g (T, out) times weight (out, in) -> (T, in), in g's dtype.
at::Tensor gemm_nn(const at::Tensor& g, const at::Tensor& weight);

// g (T, out) transposed times x (T, in) -> (out, in), in the accumulation dtype (float32; float64 for
// float64).
at::Tensor gemm_tn(const at::Tensor& g, const at::Tensor& x);

// The dtype in which this machine multiplies operands of `dtype` on this device: float32 for bfloat16 on a
// processor that is not faster with that, where it is only storage.
at::ScalarType product_dtype(at::ScalarType dtype, at::Device device);

}  // namespace ether::ops
