// Rotations from skew-symmetric matrices: what OFT (Qiu et al., arXiv 2306.07280, section 3.3) and BOFT make
// of their trained values before each pass. All of a layer's small matrices in one go, each in the cache.
#pragma once

#include <ATen/core/Tensor.h>

namespace ether::ops {

// (I - S)(I + S)^-1, Cayley's transform. skew: (n, b, b), float32 or float64, S = -S^T, for which I + S
// always has an inverse. Returns (n, b, b). Differentiable, as a function of any S.
at::Tensor cayley(const at::Tensor& skew);

// The opposite rotation (I + S)(I - S)^-1, nearly: I + 2S + 2S^2 + ... + 2S^(degree - 1) + S^degree, or
// I + 2S for degree 1, I for 0 (Cayley-Neumann, arXiv 2506.19847, and PEFT's oft tuner).
at::Tensor cayley_neumann(const at::Tensor& skew, int64_t degree);

}  // namespace ether::ops
