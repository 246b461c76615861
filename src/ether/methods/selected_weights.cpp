#include "ether/methods/selected_weights.h"

#include <ATen/Functions.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "ether/core/error.h"

namespace ether::methods {

using at::Tensor;

namespace {

bool is_better(const ScoredEntry& a, const ScoredEntry& b) {
    return a.score != b.score ? a.score > b.score : a.place < b.place;
}

}  // namespace

void BestEntries::add(const Tensor& scores, int64_t first, const Tensor& gradients) {
    if (count_ == 0) return;
    double threshold = threshold_;
    if (static_cast<int64_t>(entries_.size()) < count_ && scores.numel() > count_)
        threshold = std::max(threshold, std::get<0>(scores.topk(count_)).min().item<double>());
    const auto where = scores.ge(threshold).nonzero().view({-1}), places = where.cpu();
    auto values_at = [&](const Tensor& values) {
        return values.index_select(0, where).to(at::kCPU, at::kDouble);
    };
    const auto found = values_at(scores),
               kept = gradients.defined() ? values_at(gradients) : at::zeros_like(found);
    for (int64_t i = 0; i < places.numel(); ++i)
        entries_.push_back({found.const_data_ptr<double>()[i], first + places.const_data_ptr<int64_t>()[i],
                            kept.const_data_ptr<double>()[i]});
    if (static_cast<int64_t>(entries_.size()) < count_) return;
    std::nth_element(entries_.begin(), entries_.begin() + count_ - 1, entries_.end(), is_better);
    entries_.resize(static_cast<size_t>(count_));
    threshold_ = entries_.back().score;
}

std::vector<ScoredEntry> BestEntries::best(int64_t count) const {
    auto sorted = entries_;
    std::sort(sorted.begin(), sorted.end(), is_better);
    sorted.resize(std::min(sorted.size(), static_cast<size_t>(count)));
    return sorted;
}

SelectedWeights::SelectedWeights(const std::string& name, double budget, const MethodContext& context)
    : sites_(context.sites), first_(context.model), chosen_(context.model) {
    for (const nn::Site* site : sites_) {
        first_[*site] = entries_;
        entries_ += site->linear.weight.numel();
    }
    if (budget > 1 && budget != std::trunc(budget))
        fail(ErrorKind::usage, "--budget: {:g} is no whole number of weights, nor a share of them below 1",
             budget);
    const auto count =
        static_cast<int64_t>(std::llround(budget < 1 ? budget * static_cast<double>(entries_) : budget));
    if (count < 1 || count > entries_)
        fail(ErrorKind::usage,
             "--budget: {:g} means {} of the {} weights of the adapted layers; expected at least one and at "
             "most all",
             budget, count, entries_);
    indices = context.parameters.add(name + "_indices", at::full({count}, -1, at::kLong),
                                     nn::ParameterGroup::adapter, /*trained=*/false);
    values = context.parameters.add(name + "_values", at::zeros({count}));
}

int64_t SelectedWeights::used() {
    refresh();
    return used_;
}

void SelectedWeights::choose(const std::vector<ScoredEntry>& entries) {
    if (entries.empty()) return;
    const at::NoGradGuard no_grad;
    const int64_t begin = used(), count = static_cast<int64_t>(entries.size());
    ETHER_ASSERT(begin + count <= budget());
    std::vector<int64_t> places;
    for (const auto& entry : entries) places.push_back(entry.place);
    const auto chosen = at::tensor(places, at::kLong).to(indices.device());
    indices.narrow(0, begin, count).copy_(chosen);
    for (const nn::Site* site : sites_) {
        const auto& weight = site->linear.weight;
        const int64_t first = first_[*site];
        const auto here =
            chosen.ge(first).logical_and(chosen.lt(first + weight.numel())).nonzero().view({-1});
        const auto base = weight.reshape({-1}).index_select(0, chosen.index_select(0, here) - first);
        values.narrow(0, begin, count).index_copy_(0, here, base.to(values.scalar_type()));
    }
}

void SelectedWeights::refresh() {
    const std::pair<const void*, int64_t> now = {indices.const_data_ptr(), indices._version()};
    if (seen_ == now) return;
    const at::NoGradGuard no_grad;
    used_ = indices.ge(0).sum().item<int64_t>();
    const auto in_use = indices.narrow(0, 0, used_), order = in_use.argsort();
    const auto places = in_use.index_select(0, order), host = places.cpu();
    const auto* place = host.const_data_ptr<int64_t>();
    for (int64_t k = 0; k < used_; ++k)
        if (place[k] < 0 || place[k] >= entries_ || (k > 0 && place[k] == place[k - 1]))
            fail(ErrorKind::adapter,
                 "the adapter's indices hold {}; expected places of 0 to {} in the adapted layers' weights, "
                 "each "
                 "once, and -1 behind them",
                 place[k], entries_ - 1);
    int64_t begin = 0;
    for (const nn::Site* site : sites_) {
        const auto& weight = site->linear.weight;
        const auto* end = std::lower_bound(place + begin, place + used_, first_[*site] + weight.numel());
        const int64_t count = end - place - begin;
        const auto here = places.narrow(0, begin, count) - first_[*site];
        chosen_[*site] = {order.narrow(0, begin, count).clone(),
                          std::make_shared<ops::SparsePattern>(ops::places_of(here, weight.size(1)),
                                                               weight.size(0), weight.size(1)),
                          weight.detach().reshape({-1}).index_select(0, here).to(values.scalar_type())};
        begin += count;
    }
    seen_ = now;
}

Tensor SelectedWeights::places_at(const nn::Site& site) {
    refresh();
    return chosen_[site].pattern->numbers();
}

nn::SiteForms SelectedWeights::forms(const nn::Site& site, const nn::Pass& pass) {
    refresh();
    const auto& [where, pattern, base] = chosen_[site];
    // A layer without any has an empty overlay, so that adapters can share a batch.
    if (where.numel() == 0 && pass.training) return {};
    return branch(nn::Overlay{{pattern}, values.index_select(0, where) - base});
}

void SelectedWeights::to_config(nlohmann::json& config) const { config["budget"] = budget(); }

Field budget_field(double* budget) {
    return {.name = "budget",
            .value = budget,
            .help = "weights to train: their number, or below 1 a share of the adapted layers' weights",
            .low = 0,
            .high = 1e12};
}

}  // namespace ether::methods
