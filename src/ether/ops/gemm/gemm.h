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

// Whether this machine multiplies bfloat16 faster than float32, by what its processor has. Where it does not,
// bfloat16 is only storage: operands are widened before a product.
bool bfloat16_gemm_is_faster();

}  // namespace ether::ops
