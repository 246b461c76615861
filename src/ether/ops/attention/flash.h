// attention() by libtorch's FlashAttention.
#pragma once

#include <optional>

#include "ether/ops/attention/attention.h"

namespace ether::ops {

// As attention(), of the same arguments; nothing where it does not do the same: it takes bfloat16 on a GPU
// that has it, and draws dropouts of its own.
std::optional<at::Tensor> attention_flash(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                          const at::Tensor& query_offsets, const at::Tensor& key_offsets,
                                          const AttentionOptions& options);

}  // namespace ether::ops
