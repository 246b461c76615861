// attention: softmax(scale q k^T) v over ragged sequences, with grouped-query heads, causal mask, sliding
// window, more keys than queries (prefixes, caches) and dropout of the probabilities. Differentiable in q, k,
// v.
#pragma once

#include <ATen/core/Tensor.h>

#include "ether/core/random.h"

namespace ether::ops {

struct AttentionOptions {
    int64_t heads = 1;
    int64_t kv_heads = 1;  // divides heads
    double scale = 1;      // usually 1 / sqrt(head_dim)
    bool causal = false;
    int64_t window = 0;  // keys a query sees, itself included; 0 = all
    double dropout = 0;
    Random random{0};  // of the dropout mask
    int64_t dropout_row =
        0;  // what q's first row counts as in it: a batch in pieces drops what it drops whole
    int64_t longest_query = 0, longest_key = 0;  // sequences' greatest lengths; 0: to be found out
};

// q: (Tq, heads * head_dim), k, v: (Tk, kv_heads * head_dim); query_offsets, key_offsets: (B + 1) int32. The
// last query of a sequence is aligned with its last key. Sums are in the accumulation dtype; of bfloat16
// operands probabilities meet v as bfloat16 where products do (gemm.h, product_dtype), and as float32
// elsewhere.
at::Tensor attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const at::Tensor& query_offsets, const at::Tensor& key_offsets,
                     const AttentionOptions& options);

}  // namespace ether::ops
