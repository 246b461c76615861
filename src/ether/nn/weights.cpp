#include "ether/nn/weights.h"

#include <ATen/Functions.h>

#include "ether/core/error.h"
#include "ether/core/random.h"

namespace ether::nn {
namespace {

// Old BERT files name a LayerNorm's tensors gamma and beta.
std::string old_name(std::string name) {
    for (auto [now, then] :
         {std::pair{"LayerNorm.weight", "LayerNorm.gamma"}, {"LayerNorm.bias", "LayerNorm.beta"}})
        if (name.ends_with(now))
            return name.replace(name.size() - std::string_view(now).size(), std::string::npos, then);
    return name;
}

}  // namespace

std::string shape_text(at::IntArrayRef shape) {
    return fmt::format("({})", fmt::join(shape.begin(), shape.end(), ", "));
}

Weights::Weights(Model& model, const io::Checkpoint& checkpoint, std::string prefix, uint64_t seed)
    : model_(model),
      checkpoint_(checkpoint),
      prefix_(std::move(prefix)),
      seed_(seed),
      upload_(model.device_) {}

std::optional<std::string> Weights::find(const std::string& name) const {
    for (const auto& candidate : {name, old_name(name)}) {
        if (checkpoint_.contains(candidate)) return candidate;
        if (candidate.starts_with(prefix_) && checkpoint_.contains(candidate.substr(prefix_.size())))
            return candidate.substr(prefix_.size());
    }
    return std::nullopt;
}

bool Weights::differs(const std::string& name, const std::string& slot) const {
    const auto stored = find(name);
    if (!stored) return false;
    const auto values = checkpoint_.tensor(*stored), others = checkpoint_.tensor(*find(slot));
    return values.scalar_type() != others.scalar_type() || !values.equal(others);
}

void Weights::load(at::Tensor* slot, const std::string& name, at::IntArrayRef shape) {
    const auto stored = find(name);
    if (!stored)
        fail(ErrorKind::model,
             "{}: tensor \"{}\" {} is missing; the folder holds another architecture or is incomplete",
             checkpoint_.path().string(), name, shape_text(shape));
    const auto tensor = checkpoint_.weight(*stored);
    if (tensor.sizes() != shape)
        fail(ErrorKind::model, "{}: tensor \"{}\" has shape {}, but config.json asks for {}",
             checkpoint_.path().string(), *stored, shape_text(tensor.sizes()), shape_text(shape));
    *slot = upload_(tensor, model_.dtype_);
    if (!slot->is_same(tensor)) checkpoint_.release(*stored);
    model_.slots_[name].push_back(slot);
    model_.taken_.insert(*stored);
}

Site* Weights::add_site(const std::string& module, int64_t layer, bool is_output) {
    auto& sites = model_.sites_;
    sites.emplace_back(Linear{module, {}, {}}, static_cast<int64_t>(sites.size()), layer, is_output);
    return &sites.back();
}

Site* Weights::site(const std::string& module, int64_t out, int64_t in, bool has_bias, int64_t layer,
                    bool is_output) {
    Site* site = add_site(module, layer, is_output);
    load(&site->linear.weight, module + ".weight", {out, in});
    if (has_bias) load(&site->linear.bias, module + ".bias", {out});
    return site;
}

Site* Weights::head(const std::string& module, int64_t out, int64_t in, bool has_bias, double deviation,
                    bool draw) {
    if (!draw && contains(module + ".weight")) return site(module, out, in, has_bias, -1, true);
    Site* site = add_site(module, -1, true);
    const auto random = Random(seed_).stream(module);
    auto weight = at::empty({out, in}, at::kFloat);
    float* values = weight.mutable_data_ptr<float>();
    for (int64_t i = 0; i < out * in; ++i)
        values[i] = static_cast<float>(deviation * random.normal(static_cast<uint64_t>(i)));
    site->linear.weight = weight.to(model_.device_, model_.dtype_);
    model_.slots_[module + ".weight"].push_back(&site->linear.weight);
    if (has_bias) {
        site->linear.bias = at::zeros({out}, site->linear.weight.options());
        model_.slots_[module + ".bias"].push_back(&site->linear.bias);
    }
    auto& drawn = model_.new_modules_;
    if (const auto whole = top_module(module); std::find(drawn.begin(), drawn.end(), whole) == drawn.end())
        drawn.push_back(whole);
    return site;
}

Site* Weights::tied_head(const std::string& module, const std::string& tied_to) {
    Site* site = add_site(module, -1, true);
    auto& slots = model_.slots_.at(tied_to);
    site->linear.weight = *slots.front();
    slots.push_back(&site->linear.weight);
    return site;
}

}  // namespace ether::nn
