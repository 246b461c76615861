#include "ether/train/memory.h"

#include <algorithm>
#include <numeric>
#include <string>

#include "ether/core/error.h"
#include "ether/core/parallel.h"
#include "ether/ops/cross_entropy/linear_cross_entropy.h"

namespace ether::train {
namespace {

// "1.2 GB", "340 MB"
std::string in_words(int64_t bytes) {
    const auto value = static_cast<double>(bytes);
    return bytes < 1'000'000'000 ? fmt::format("{:.0f} MB", value / 1e6)
                                 : fmt::format("{:.1f} GB", value / 1e9);
}

// Values a token that a site's bound forms keep for backward.
int64_t kept_by(const nn::Site& site) {
    const auto& forms = site.forms;
    const int64_t in = site.linear.in(), out = site.linear.out();
    // What deltas read is kept once.
    int64_t kept = forms.delta.empty() ? 0 : in;
    auto follow = [&](const nn::Chain& chain, int64_t width, bool is_delta) {
        for (const auto& form : chain) {
            const int64_t after = nn::width_after(form, width);
            // A product keeps what it reads; of a delta, what it makes is a value of its own, too.
            // (A float32 weight's product takes the last factor's in.)
            const bool added = &form == &chain.back() && std::holds_alternative<nn::LowRank>(form) &&
                               site.linear.weight.scalar_type() == at::kFloat;
            const bool reads_kept = is_delta && &form == &chain.front();
            if (!nn::acts_by_row(form)) kept += (reads_kept ? 0 : width) + (is_delta && !added ? after : 0);
            width = after;
        }
    };
    follow(forms.pre, in, false);
    follow(forms.post, out, false);
    follow(forms.output, out, false);
    for (const auto& chain : forms.delta) follow(chain, in, true);
    return kept;
}

// Values of low-rank factors that graphs of rows hold transposed.
int64_t turned_values(const nn::SiteForms& forms) {
    int64_t values = 0;
    for (const auto& chain : forms.delta)
        for (const auto& form : chain)
            if (const auto* low_rank = std::get_if<nn::LowRank>(&form); low_rank && nn::acts_by_row(form))
                values += low_rank->a.numel() + low_rank->b.numel();
    return values;
}

// Bytes of a value.
int64_t width_of(const nn::Model& model) { return model.dtype() == at::kBFloat16 ? 2 : 4; }

// Values a token that lie between two graphs of rows of a block, which are kept: its input, q, k and v before
// and after rotation, the results of attention, o and down, the inputs of the activation.
int64_t block_values(const nn::ModelShape& shape) {
    return 8 * shape.hidden_size + 2 * shape.intermediate_size;
}

// A language model's logits. whole: of an adapted head, their logarithms and gradient too.
int64_t logits_bytes(const nn::Model& model, const LargestBatch& batch, bool whole) {
    const auto& shape = model.shape();
    if (shape.head != nn::Head::causal_lm) return 0;
    if (whole) return 3 * batch.tokens * shape.vocab_size * int64_t{sizeof(float)};
    return ops::linear_cross_entropy_bytes(batch.tokens, shape.vocab_size, model.dtype(), model.device());
}

// Attention's tiles and the operands and gradients of a key head, in every thread; on a GPU, FlashAttention's
// sums for the gradient of q, in several parts where there are fewer heads than processors.
int64_t attention_bytes(const nn::Model& model, const LargestBatch& batch) {
    constexpr int64_t kProcessors = 132, kTile = 64;
    const auto& shape = model.shape();
    const int64_t parts = (kProcessors + shape.heads - 1) / shape.heads;
    return model.device().is_cpu() ? num_threads() * 4 * batch.longest * (3 * kTile + 8 * shape.head_dim)
                                   : parts * 4 * batch.tokens * shape.heads * shape.head_dim;
}

}  // namespace

LargestBatch largest_batch(std::vector<int64_t> lengths, int64_t batch) {
    std::sort(lengths.rbegin(), lengths.rend());
    lengths.resize(std::min(lengths.size(), static_cast<size_t>(batch)));
    return {std::accumulate(lengths.begin(), lengths.end(), int64_t{0}),
            lengths.empty() ? 0 : lengths.front()};
}

int64_t MemoryEstimate::activations(int64_t checkpointed_blocks) const {
    // While it is run again, one block's values are there once more, and half of them as gradients.
    const int64_t again = checkpointed_blocks > 0 ? 3 * block / 2 : 0;
    return std::max(rest + (blocks - checkpointed_blocks) * block + checkpointed_blocks * checkpoint + again,
                    evaluation);
}

int64_t MemoryEstimate::blocks_to_checkpoint(int64_t available) const {
    int64_t count = 0;
    while (count < blocks && total(count) > available) ++count;
    return count;
}

MemoryEstimate estimate_memory(methods::AdaptedModel& model, const LargestBatch& training) {
    const auto& shape = model.model().shape();
    const int64_t element = width_of(model.model());
    MemoryEstimate estimate;
    estimate.trained = model.parameters().count() * 4 * 5;  // in float32
    // An adapted site adds what its products with matrices of the adapter read and make.
    int64_t per_token = shape.layers * block_values(shape);
    const at::NoGradGuard no_grad;
    const data::Batch nothing;
    model.bind({.batch = nothing});
    int64_t outside = 0;              // of blocks, a token
    int64_t largest = 0, turned = 0;  // bytes of the largest dense change, and of turned factors
    for (const auto* site : model.sites()) {
        (site->layer < 0 ? outside : per_token) += kept_by(*site);
        if (nn::dense_delta(site->forms, site->linear.weight.scalar_type()))
            largest = std::max(largest, site->linear.weight.numel() * element);
        turned += 4 * turned_values(site->forms);
    }
    estimate.whole_logits = !model.model().output_site().forms.empty();
    model.model().unbind();
    estimate.blocks = shape.layers;
    // Each slice of a batch turns its own.
    estimate.block = (per_token * training.tokens * element + turned * num_threads()) / shape.layers;
    // Its input, and its last layer's product.
    estimate.checkpoint = 2 * shape.hidden_size * training.tokens * element;
    // One at a time, its sum with the weight, its gradient, and what lies between them and the trained
    // values.
    estimate.rest = logits_bytes(model.model(), training, estimate.whole_logits) +
                    attention_bytes(model.model(), training) + 5 * largest +
                    outside * training.tokens * element;
    return estimate;
}

int64_t evaluation_bytes(const nn::Model& model, const LargestBatch& batch, bool whole_logits) {
    return logits_bytes(model, batch, whole_logits) +
           block_values(model.shape()) * batch.tokens * width_of(model) + attention_bytes(model, batch);
}

void check_memory(const MemoryEstimate& estimate, int64_t checkpointed_blocks, int64_t available,
                  const std::string& advice) {
    if (estimate.total(checkpointed_blocks) <= available) return;
    fail(ErrorKind::memory,
         "this run needs about {} (trained values and optimizer {}, activations {}), but {} are free; {}; "
         "--force tries all the same",
         in_words(estimate.total(checkpointed_blocks)), in_words(estimate.trained),
         in_words(estimate.activations(checkpointed_blocks)), in_words(available), advice);
}

}  // namespace ether::train
