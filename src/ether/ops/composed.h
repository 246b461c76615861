// Operations run as kernels of ours on the CPU, and composed of libtorch's own on every other device (but for
// what has kernels on a GPU: graphs of row operations, attention and a language model's loss, */gpu.h).
#pragma once

#include <ATen/core/Tensor.h>

namespace ether::ops {

// Whether operations on x are composed. On the CPU only where the environment variable ETHER_COMPOSED is set:
// it tells a kernel's fault from others, and there tests see what other devices run.
bool runs_composed(const at::Tensor& x);

}  // namespace ether::ops
