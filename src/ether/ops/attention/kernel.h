// Attention kernels over ragged sequences, free of torch. One query tile against all keys it may see, so the
// probabilities of a tile are the only scratch; tiles run in parallel, without races.
#pragma once

#include <cstdint>

#include "ether/ops/attention/operands.h"

namespace ether::ops {

struct AttentionShape {
    int64_t heads, kv_heads,
        head_dim;  // queries: (tokens, heads * head_dim); keys, values: (tokens, kv_heads * head_dim)
    int64_t sequences;
    const int32_t* query_offsets;  // (sequences + 1): where each sequence begins
    const int32_t* key_offsets;    // (sequences + 1); a sequence's last query is aligned with its last key
    double scale;
    bool causal;
    int64_t window;  // keys a query sees, itself included; 0 = all (Mistral's sliding window)
    double dropout;  // of the probabilities
    uint64_t dropout_key;
    int64_t dropout_row;  // what the first query's row counts as in the dropout's mask
};

// S: float, double, or c10::BFloat16 with an even head_dim, whose products have operands of bfloat16
// (probabilities and their gradients too) and sums of float32.
// out (query tokens, heads * head_dim) and lse (query tokens, heads), the logarithm of each row's softmax
// denominator.
template <typename S>
void attention_forward(const AttentionShape& shape, const S* q, const S* k, const S* v, S* out, Wide<S>* lse);

// Gradients are overwritten.
template <typename S>
void attention_backward(const AttentionShape& shape, const S* q, const S* k, const S* v, const S* out,
                        const Wide<S>* lse, const S* grad_out, S* grad_q, S* grad_k, S* grad_v);

}  // namespace ether::ops
