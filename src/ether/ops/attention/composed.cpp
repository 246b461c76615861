#include "ether/ops/attention/composed.h"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>

#include <limits>

#include "ether/ops/dispatch.h"
#include "ether/ops/dropout/dropout.h"

namespace ether::ops {
namespace {

using at::Tensor;

// Where the rows of ragged sequences lie in a padded batch, and back. Nothing here waits for the device.
struct Padding {
    Tensor lengths;  // (B)
    Tensor rows;     // (B, longest) of each place, whatever for places behind a sequence's end
    Tensor filled;   // (B, longest) whether a place is within its sequence
    Tensor places;   // (T) of each row

    Padding(const Tensor& offsets, int64_t total, int64_t longest) {
        const int64_t sequences = offsets.size(0) - 1;
        const auto first = offsets.narrow(0, 0, sequences), end = offsets.narrow(0, 1, sequences);
        lengths = end - first;
        if (longest == 0) longest = lengths.max().item<int64_t>();
        const auto place = at::arange(longest, offsets.options()).unsqueeze(0);
        filled = place < lengths.unsqueeze(1);
        rows = (first.unsqueeze(1) + place).clamp_max(total - 1);
        const auto row = at::arange(total, offsets.options());
        const auto sequence = at::searchsorted(end.contiguous(), row, /*out_int32=*/false, /*right=*/true);
        places = sequence * longest + (row - first.index_select(0, sequence));
    }

    int64_t longest() const { return rows.size(1); }

    // x (T, heads * d) -> (B, heads, longest, d), zeros behind a sequence's end
    Tensor pad(const Tensor& x, int64_t heads) const {
        return x.index_select(0, rows.flatten())
            .masked_fill(filled.flatten().bitwise_not().unsqueeze(1), 0)
            .view({rows.size(0), longest(), heads, -1})
            .transpose(1, 2);
    }
    // and back
    Tensor unpad(const Tensor& x) const {
        return x.transpose(1, 2).reshape({rows.numel(), x.size(1) * x.size(3)}).index_select(0, places);
    }
};

// (B, 1, queries, keys): which keys a query sees
Tensor visible(const Padding& queries, const Padding& keys, const AttentionOptions& options) {
    const auto shift = (keys.lengths - queries.lengths).view({-1, 1, 1, 1});
    const auto own = at::arange(queries.longest(), shift.options()).view({-1, 1}) + shift;
    const auto other = at::arange(keys.longest(), shift.options());
    auto seen = keys.filled.view({-1, 1, 1, keys.longest()});
    if (options.causal) seen = seen.bitwise_and(other <= own);
    if (options.window > 0) seen = seen.bitwise_and(other > own - options.window);
    return seen;
}

// Counted as the kernel counts them (kernel_cpu.cpp).
Tensor dropout_scales(const Padding& queries, int64_t keys, const AttentionOptions& options,
                      at::ScalarType dtype) {
    const auto row = (queries.rows.to(at::kLong) + options.dropout_row).view({-1, 1, queries.longest(), 1});
    const auto head = at::arange(options.heads, row.options()).view({-1, 1, 1});
    const auto index =
        at::bitwise_left_shift(row * options.heads + head, 24) + at::arange(keys, row.options());
    return keep_scales(options.random.key(), index, options.dropout, dtype);
}

}  // namespace

Tensor attention_composed(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& query_offsets,
                          const Tensor& key_offsets, const AttentionOptions& options) {
    const auto dtype = accumulate_dtype(q.scalar_type());
    const Padding queries(query_offsets, q.size(0), options.longest_query),
        keys(key_offsets, k.size(0), options.longest_key);
    auto of_heads = [&](const Tensor& x) {
        return keys.pad(x.to(dtype), options.kv_heads)
            .repeat_interleave(options.heads / options.kv_heads, /*dim=*/1);
    };
    const auto scores = queries.pad(q.to(dtype), options.heads).matmul(of_heads(k).transpose(2, 3));
    const auto hidden = visible(queries, keys, options).bitwise_not();
    auto probabilities =
        (scores * options.scale).masked_fill(hidden, std::numeric_limits<float>::lowest()).softmax(-1);
    if (options.dropout > 0)
        probabilities = probabilities * dropout_scales(queries, keys.longest(), options, dtype);
    return queries.unpad(probabilities.matmul(of_heads(v))).to(q.scalar_type());
}

}  // namespace ether::ops
