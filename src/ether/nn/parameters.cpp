#include "ether/nn/parameters.h"

#include "ether/core/error.h"

namespace ether::nn {

at::Tensor ParameterStore::add(std::string name, at::Tensor value, ParameterGroup group, bool trained,
                               bool saved) {
    name = scope_ + name;
    ETHER_ASSERT(!find(name));
    if (saved) check_room(value.numel(), name), saved_ += value.numel();
    value = value.detach().to(device_);  // a leaf, even if it was computed from another parameter
    if (trained) value.requires_grad_(true);
    parameters_.push_back({std::move(name), std::move(value), group, trained, saved, scope_});
    return parameters_.back().value;
}

void ParameterStore::check_room(int64_t more, const std::string& name) const {
    constexpr int64_t kExcess = 8, kMore = 1 << 20;
    if (!expected_ || saved_ + more <= kExcess * *expected_ + kMore) return;
    fail(ErrorKind::adapter,
         "the adapter's file holds {} values, but its configuration asks for {} up to \"{}\" alone; it was "
         "made "
         "for another model, or the configuration was changed",
         *expected_, saved_ + more, name);
}

const Parameter* ParameterStore::find(const std::string& name) const {
    for (const auto& parameter : parameters_)
        if (parameter.name == name || (parameter.scope == scope_ && parameter.bare() == name))
            return &parameter;
    return nullptr;
}

std::vector<Parameter> ParameterStore::trained() const {
    std::vector<Parameter> result;
    for (const auto& parameter : parameters_)
        if (parameter.trained) result.push_back(parameter);
    return result;
}

int64_t ParameterStore::count(ParameterGroup group) const {
    int64_t total = 0;
    for (const auto& parameter : parameters_)
        if (parameter.trained && parameter.group == group) total += parameter.value.numel();
    return total;
}

int64_t ParameterStore::count() const {
    return count(ParameterGroup::adapter) + count(ParameterGroup::head) + count(ParameterGroup::base);
}

void ParameterStore::clear_grads() const {
    for (const auto& parameter : parameters_) parameter.value.mutable_grad() = at::Tensor();
}

}  // namespace ether::nn
