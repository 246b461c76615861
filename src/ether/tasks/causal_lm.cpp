#include "ether/tasks/causal_lm.h"

#include <ATen/Functions.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "ether/core/error.h"
#include "ether/ops/cross_entropy/linear_cross_entropy.h"

namespace ether::tasks {

void set_next_token_targets(data::Sequence& sequence) {
    sequence.targets.assign(sequence.ids.begin() + 1, sequence.ids.end());
    sequence.targets.push_back(data::kIgnoredTarget);
}

std::vector<data::Sequence> CausalLm::encode(const std::vector<data::Example>& examples,
                                             const std::string& file, const text::Tokenizer& tokenizer,
                                             const TextOptions& options) const {
    std::vector<std::string> texts;
    for (const auto& example : examples) texts.push_back(example.text);
    const auto encodings = tokenizer.encode_batch(texts, {}, 0);
    const auto eos = tokenizer.eos_id();
    std::vector<data::Sequence> sequences;
    for (const auto& encoding : encodings) {
        auto ids = encoding.ids;
        if (eos && (ids.empty() || ids.back() != *eos)) ids.push_back(*eos);
        const size_t piece = options.max_length ? static_cast<size_t>(options.max_length) : ids.size();
        for (size_t begin = 0; begin < ids.size(); begin += piece) {
            const size_t end = std::min(begin + piece, ids.size());
            if (end - begin < 2) continue;  // nothing to predict
            auto& sequence = sequences.emplace_back();
            sequence.ids.assign(ids.begin() + static_cast<int64_t>(begin),
                                ids.begin() + static_cast<int64_t>(end));
            set_next_token_targets(sequence);
        }
    }
    if (sequences.empty())
        fail(ErrorKind::data, "{}: no text is two tokens long, so there is nothing to predict", file);
    return sequences;
}

double CausalLm::weight(const data::Batch& batch) const { return static_cast<double>(batch.predicted); }

LossSum CausalLm::loss(methods::AdaptedModel& model, const nn::Pass& pass) const {
    const auto& head = model.model().output_site();
    const double items = weight(pass.batch);
    const auto hidden = model.hidden(pass);
    if (head.forms.empty() && !head.weight_grad && !head.linear.bias.defined())
        return {ops::linear_cross_entropy(hidden, head.linear.weight, pass.batch.targets), items};
    const auto logits = head(hidden, pass);
    const auto wide = logits.scalar_type() == at::kBFloat16 ? logits.to(at::kFloat) : logits;
    return {at::cross_entropy_loss(wide, pass.batch.targets, {}, at::Reduction::Sum, data::kIgnoredTarget),
            items};
}

Scores CausalLm::evaluate(methods::AdaptedModel& model, const std::vector<data::Sequence>& sequences,
                          int64_t batch) const {
    double sum = 0, items = 0;
    for_each_batch(
        model, sequences, batch, label_type(), [&](const nn::Pass& pass) { return loss(model, pass).sum; },
        [&](const data::Batch& b, const at::Tensor& part) {
            sum += part.item<double>();
            items += weight(b);
        });
    const double mean = items > 0 ? sum / items : 0;
    return {{"loss", mean}, {"perplexity", std::exp(mean)}};
}

nlohmann::json CausalLm::describe() const { return {{"task", name()}}; }

}  // namespace ether::tasks
