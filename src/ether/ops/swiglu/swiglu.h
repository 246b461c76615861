// swiglu: silu(gate) * up (Shazeer, arXiv 2002.05202), keeping only its two inputs for backward.
#pragma once

#include <ATen/core/Tensor.h>

namespace ether::ops {

// gate, up: same shape and dtype. Differentiable in both.
at::Tensor swiglu(const at::Tensor& gate, const at::Tensor& up);

}  // namespace ether::ops
