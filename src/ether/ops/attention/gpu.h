// Attention as kernels of a GPU (attention.cuh), as kernel.h has it for the CPU: tiles of queries by keys,
// whose probabilities never reach the device's memory.
#pragma once

#include <ATen/core/Tensor.h>

#include "ether/ops/attention/attention.h"
#include "ether/ops/attention/kernel.h"

namespace ether::ops {

// Whether q's device has kernels for operands of its width and dtype.
bool has_gpu_attention(const at::Tensor& q, const AttentionOptions& options);

// q, k and v: contiguous, of one dtype. longest: of the sequences' queries. out is like q, lse (query tokens,
// heads) in the accumulation dtype.
void gpu_attention_forward(const AttentionShape& shape, int64_t longest, const at::Tensor& q,
                           const at::Tensor& k, const at::Tensor& v, const at::Tensor& out,
                           const at::Tensor& lse);

// longest_key: of the sequences' keys. Gradients are overwritten.
void gpu_attention_backward(const AttentionShape& shape, int64_t longest, int64_t longest_key,
                            const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                            const at::Tensor& out, const at::Tensor& lse, const at::Tensor& grad_out,
                            const at::Tensor& grad_q, const at::Tensor& grad_k, const at::Tensor& grad_v);

}  // namespace ether::ops
