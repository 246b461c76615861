#include "ether/export/probe.h"

#include <ATen/Functions.h>

#include <algorithm>
#include <numeric>

#include "ether/core/error.h"
#include "ether/core/random.h"
#include "ether/models/registry.h"

namespace ether::exporting {
namespace {

constexpr int64_t kRandomRows = 4;
constexpr int64_t kTrainedTokens = 256, kTokensInARow = 16;  // of those whose embeddings the adapter trained

data::Batch probe_rows(methods::AdaptedModel& adapted) {
    const auto& shape = adapted.model().shape();
    const auto random = Random(0).stream("merge probe");
    std::vector<data::Sequence> rows(kRandomRows);
    uint64_t drawn = 0;
    for (size_t i = 0; i < rows.size(); ++i)
        for (int64_t j = 0; j < std::min<int64_t>(shape.max_positions, 4 + 5 * static_cast<int64_t>(i)); ++j)
            rows[i].ids.push_back(
                static_cast<int64_t>(random.below(drawn++, static_cast<uint64_t>(shape.vocab_size))));
    adapted.bind(nn::Pass{data::Batch{}});
    if (const auto* trained = adapted.model().embeddings().rows) {
        const auto& ids = trained->ids();
        const int64_t step = std::max<int64_t>(1, ids.numel() / kTrainedTokens);
        for (int64_t i = 0; i < ids.numel(); i += step) {
            const auto longest = static_cast<size_t>(std::min(shape.max_positions, kTokensInARow));
            if (i == 0 || rows.back().ids.size() == longest) rows.emplace_back();
            rows.back().ids.push_back(ids[i].item<int64_t>());
        }
    }
    std::vector<int64_t> all(rows.size());
    std::iota(all.begin(), all.end(), int64_t{0});
    return data::collate(rows, all, data::LabelType::none);
}

// The model as it is in its folder, but for the head that the adapter brings.
std::unique_ptr<nn::Model> base_with_head(const eval::LoadedAdapter& loaded) {
    auto& adapted = *loaded.model;
    const auto own_classes = models::stored_classes(loaded.checkpoint);
    auto base = models::load_model(loaded.checkpoint, {.head = loaded.task->head(),
                                                       .classes = loaded.task->classes(),
                                                       .new_head = own_classes != loaded.task->classes(),
                                                       .dtype = adapted.model().dtype()});
    const auto& trained = adapted.model().tensors();
    for (const auto& [name, slots] : base->tensors())
        for (const auto& parameter : adapted.parameters().all())
            if (parameter.group == nn::ParameterGroup::head &&
                parameter.value.is_same(*trained.at(name).front()))
                for (at::Tensor* slot : slots) *slot = parameter.value;
    return base;
}

double largest(const at::Tensor& t) { return t.abs().max().item<double>(); }

}  // namespace

double Comparison::tolerance(bool float32) const {
    return (float32 ? 1e-4 : 5e-2) * std::max(1.0, largest_logit);
}

std::optional<std::string> tensor_trained_in_place(methods::AdaptedModel& adapted) {
    for (const auto& [name, slots] : adapted.model().tensors())
        for (const auto& parameter : adapted.parameters().all())
            if (parameter.group != nn::ParameterGroup::head && parameter.value.is_same(*slots.front()))
                return name;
    return {};
}

Probe::Probe(eval::LoadedAdapter& loaded) : batch_(probe_rows(*loaded.model)) {
    const at::NoGradGuard no_grad;
    auto& adapted = *loaded.model;
    adapter_ = adapted.logits({.batch = batch_}).to(at::kDouble);
    if (!adapter_.isfinite().all().item<bool>())
        fail(ErrorKind::numeric,
             "with this adapter the model's logits are NaN or infinite, so there is nothing to compare a "
             "result "
             "with; was it trained on another base?");
    const bool in_place = tensor_trained_in_place(adapted).has_value();
    adapted.model().unbind();
    base_ = (in_place ? base_with_head(loaded)->logits({.batch = batch_})
                      : adapted.model().logits({.batch = batch_}))
                .to(at::kDouble);
}

Comparison Probe::compare(const at::Tensor& logits) const {
    const auto found = logits.to(at::kDouble);
    Comparison comparison;
    comparison.largest_logit = largest(adapter_);
    comparison.largest_difference = largest(found - adapter_);
    const auto effect = adapter_ - base_;
    comparison.adapter_effect = largest(effect);
    if (comparison.adapter_effect == 0) return comparison;
    comparison.retained =
        ((found - base_) * effect).sum().item<double>() / effect.square().sum().item<double>();
    comparison.distance = (found - adapter_).norm().item<double>() / effect.norm().item<double>();
    return comparison;
}

}  // namespace ether::exporting
