#include "ether/nn/model.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/aminmax.h>

#include <algorithm>
#include <charconv>
#include <cmath>

#include "ether/core/error.h"

namespace ether::nn {

std::optional<size_t> block_number(const std::string& name) {
    const auto first = name.find_first_of("0123456789");
    if (first == std::string::npos || first == 0 || name[first - 1] != '.') return std::nullopt;
    size_t number = 0;
    const auto result = std::from_chars(name.data() + first, name.data() + name.size(), number);
    return result.ec == std::errc() ? std::optional(number) : std::nullopt;
}

std::string top_module(const std::string& module) { return module.substr(0, module.find('.')); }

void Model::replace(const std::string& name, const at::Tensor& value) {
    const auto found = slots_.find(name);
    ETHER_ASSERT(found != slots_.end());
    for (at::Tensor* slot : found->second) *slot = value;
}

void Model::untie_output() {
    at::Tensor* weight = &output_site_->linear.weight;
    const auto own = output_site_->name() + ".weight";
    if (slots_.contains(own)) return;
    for (auto& [name, slots] : slots_) std::erase(slots, weight);
    *weight = weight->clone();
    slots_[own].push_back(weight);
}

int64_t Model::parameter_count() const {
    int64_t total = 0;
    for (const auto& [name, slots] : slots_) total += slots.front()->numel();
    return total;
}

std::vector<std::string> Model::module_tensors(const std::string& module) const {
    std::vector<std::string> names;
    for (const auto& [name, slots] : slots_)
        if (name.starts_with(module + ".")) names.push_back(name);
    return names;
}

void Model::check_finite(const std::string& folder) const {
    for (const auto& [name, slots] : slots_) {
        if (slots.front()->numel() == 0) continue;
        // Both are NaN where one value is, and neither takes a copy of the tensor, as isfinite does.
        const auto [lowest, highest] = at::aminmax(*slots.front());
        if (!std::isfinite(lowest.item<double>()) || !std::isfinite(highest.item<double>()))
            fail(ErrorKind::numeric,
                 "{}: tensor \"{}\" holds NaN or infinity; the model file is damaged, download it again",
                 folder, name);
    }
}

at::Tensor BlockPoints::positions_of(const data::Batch& batch) const {
    return positions_taken > 0 ? batch.positions + positions_taken : batch.positions;
}

bool BlockPoints::join(const BlockPoints& other) {
    auto take = [](auto& own, const auto& theirs) {
        if (own && theirs) return false;
        if (theirs) own = theirs;
        return true;
    };
    // Each would act on what the other has made, in an order of ours, not theirs.
    if ((mlp_out && other.mlp_end) || (mlp_end && other.mlp_out)) return false;
    positions_taken += other.positions_taken;
    return take(attn_in, other.attn_in) && take(attn_out, other.attn_out) && take(mlp_in, other.mlp_in) &&
           take(mlp_out, other.mlp_out) && take(extra_kv, other.extra_kv) && take(mlp, other.mlp) &&
           take(mlp_end, other.mlp_end);
}

void Model::checkpoint_blocks(int64_t count) {
    checkpoints_.clear();
    for (auto& site : sites_) site.keeps_product = false;
    if (count == 0) return;
    ETHER_ASSERT(
        std::all_of(points_.begin(), points_.end(), [](const auto& points) { return points.empty(); }));
    checkpoints_.resize(std::min(points_.size(), static_cast<size_t>(count)));
    std::vector<Site*> last(checkpoints_.size());
    for (auto& site : sites_) {
        if (site.layer < 0 || site.layer >= count) continue;
        const auto layer = static_cast<size_t>(site.layer);
        last[layer] = &site;
        for (at::Tensor* tensor : tensors_of(site.forms))
            if (tensor->requires_grad()) *tensor = checkpoints_[layer].leaf_for(*tensor);
    }
    for (Site* site : last) site->keeps_product = true;  // every block has linear layers
    for (const auto& [name, slots] : slots_)             // weights that are trained themselves
        if (const auto layer = block_number(name);
            layer && *layer < checkpoints_.size() && slots.front()->requires_grad())
            checkpoints_[*layer].leaf_for(*slots.front());
}

at::Tensor Model::through(size_t layer, const at::Tensor& x, const Pass& pass, const Block& block) const {
    if (layer >= checkpoints_.size() || !at::GradMode::is_enabled()) return block(x, pass);
    return checkpointed(block, x, pass, checkpoints_[layer]);
}

void Model::take_positions(int64_t count) {
    const int64_t own = shape_.max_positions + taken_positions_;
    if (count >= own)
        fail(ErrorKind::usage, "{} vectors before a text leave it none of the model's {} positions", count,
             own);
    taken_positions_ = std::max(taken_positions_, count);
    shape_.max_positions = own - taken_positions_;
}

void Model::unbind() {
    checkpoints_.clear();
    for (auto& site : sites_) {
        site.forms = {};
        site.weight_grad = {};
        site.watch = {};
        site.keeps_product = false;
    }
    for (auto& points : points_) points = {};
    embeddings_.rows = nullptr;
    embeddings_.forms = {};
}

}  // namespace ether::nn
