#include "ether/export/probe.h"

#include <ATen/Functions.h>

#include <algorithm>

#include "ether/core/random.h"

namespace ether::exporting {
namespace {

data::Batch random_rows(const nn::ModelShape& shape) {
    const auto random = Random(0).stream("merge probe");
    std::vector<data::Sequence> rows(4);
    uint64_t drawn = 0;
    for (size_t i = 0; i < rows.size(); ++i)
        for (int64_t j = 0; j < std::min<int64_t>(shape.max_positions, 4 + 5 * static_cast<int64_t>(i)); ++j)
            rows[i].ids.push_back(
                static_cast<int64_t>(random.below(drawn++, static_cast<uint64_t>(shape.vocab_size))));
    const std::vector<int64_t> all = {0, 1, 2, 3};
    return data::collate(rows, all, data::LabelType::none);
}

double largest(const at::Tensor& t) { return t.abs().max().item<double>(); }

}  // namespace

double Comparison::tolerance(bool float32) const {
    return (float32 ? 1e-4 : 5e-2) * std::max(1.0, largest_logit);
}

Probe::Probe(methods::AdaptedModel& adapted) : batch_(random_rows(adapted.model().shape())) {
    const at::NoGradGuard no_grad;
    adapter_ = adapted.logits({.batch = batch_}).to(at::kDouble);
    adapted.model().unbind();
    if (adapted.parameters().count(nn::ParameterGroup::base) == 0)
        base_ = adapted.model().logits({.batch = batch_}).to(at::kDouble);
}

Comparison Probe::compare(const at::Tensor& logits) const {
    const auto found = logits.to(at::kDouble);
    Comparison comparison;
    comparison.largest_logit = largest(adapter_);
    comparison.largest_difference = largest(found - adapter_);
    if (!base_.defined()) return comparison;
    const auto effect = adapter_ - base_;
    comparison.adapter_effect = largest(effect);
    if (*comparison.adapter_effect > 0)
        comparison.retained =
            ((found - base_) * effect).sum().item<double>() / effect.square().sum().item<double>();
    return comparison;
}

}  // namespace ether::exporting
