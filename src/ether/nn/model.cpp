#include "ether/nn/model.h"

#include "ether/core/error.h"

namespace ether::nn {

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

void Model::unbind() {
    for (auto& site : sites_) {
        site.forms = {};
        site.weight_grad = {};
    }
    for (auto& points : points_) points = {};
}

}  // namespace ether::nn
