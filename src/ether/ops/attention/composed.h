// attention() of libtorch's operations, with sequences padded to the longest and a matrix of scores for each
// head.
#pragma once

#include "ether/ops/attention/attention.h"

namespace ether::ops {

// As attention(), of the same arguments, without a function of its own in autograd's graph.
at::Tensor attention_composed(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                              const at::Tensor& query_offsets, const at::Tensor& key_offsets,
                              const AttentionOptions& options);

}  // namespace ether::ops
