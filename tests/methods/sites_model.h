// A model that is nothing but linear sites, to look at methods without an architecture.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "ether/core/error.h"
#include "ether/methods/method.h"
#include "ether/methods/registry.h"
#include "tensors.h"

namespace ether::test {

class SitesModel : public nn::Model {
  public:
    // Every block has `sites_a_block` of the layers, if that is given; else all are one block's.
    explicit SitesModel(const std::vector<nn::Linear>& linears, const nn::ModelShape& shape = {},
                        int64_t sites_a_block = 0) {
        shape_ = shape;
        for (const auto& linear : linears) {
            const auto index = static_cast<int64_t>(sites_.size());
            auto& site = sites_.emplace_back(linear, index, sites_a_block ? index / sites_a_block : 0, false);
            slots_[linear.name + ".weight"].push_back(&site.linear.weight);
            if (linear.bias.defined()) slots_[linear.name + ".bias"].push_back(&site.linear.bias);
        }
        dtype_ = linears.front().weight.scalar_type();
        output_site_ = &sites_.back();
    }
    at::Tensor hidden(const nn::Pass&) const override { return {}; }
    at::Tensor logits(const nn::Pass&) const override { return {}; }
};

// Weights of a shape that take no memory, for counting.
inline nn::Linear shape_only(std::string name, int64_t out, int64_t in) {
    return {std::move(name), at::zeros({1}).expand({out, in}), {}};
}

// One method's adapter on all of a SitesModel's sites.
class AdaptedSites {
  public:
    AdaptedSites(const std::vector<nn::Linear>& linears, const std::string& method,
                 const std::vector<std::pair<std::string, std::string>>& options,
                 const nn::ModelShape& shape = {}, int64_t sites_a_block = 0)
        : model(linears, shape, sites_a_block), options_(methods::method_named(method).options()) {
        const auto fields = options_->fields();
        for (const auto& [name, value] : options) find_field(fields, name)->set(value);
        for (auto& site : model.sites()) sites_.push_back(&site);
        adapter = methods::method_named(method).make(*options_, {model, sites_, parameters, Random(1)});
    }

    AdaptedSites(const AdaptedSites&) = delete;  // the adapter points into the model
    AdaptedSites& operator=(const AdaptedSites&) = delete;

    // Replaces a parameter's values, in the new ones' dtype; the adapter sees them, since it shares the
    // handle.
    at::Tensor set(const std::string& name, const at::Tensor& value) const {
        const auto* parameter = parameters.find(name);
        ETHER_ASSERT(parameter && parameter->value.sizes() == value.sizes());
        parameter->value.set_data(value.clone());
        return parameter->value;
    }
    void randomise(uint64_t seed) const {
        for (const auto& parameter : parameters.all())
            if (parameter.value.is_floating_point())  // not places
                set(parameter.name, normal(parameter.value.sizes(), seed++));
    }

    nn::SiteForms forms(size_t site = 0) {
        sites_.at(site)->forms = {};  // of no method before this one
        adapter->begin_pass(pass());
        return adapter->forms(*sites_.at(site), pass());
    }
    at::Tensor run(const at::Tensor& x, size_t site = 0) {
        sites_.at(site)->forms = forms(site);
        return (*sites_.at(site))(x, pass());
    }
    // x through the site with other forms; rows (T) int32 choose each token's entry in a bank.
    at::Tensor run_with(const nn::SiteForms& forms, const at::Tensor& x, const at::Tensor& rows = {}) {
        sites_.front()->forms = forms;
        auto with_rows = pass();
        with_rows.adapter_rows = rows;
        return (*sites_.front())(x, with_rows);
    }
    // The site's weight and bias with the adapter multiplied in.
    std::pair<at::Tensor, at::Tensor> merged(size_t site = 0) {
        const auto& linear = sites_.at(site)->linear;
        return nn::merged(forms(site), linear.weight, linear.bias);
    }

    SitesModel model;
    nn::ParameterStore parameters;
    std::unique_ptr<methods::Adapter> adapter;

  private:
    static nn::Pass pass() {
        static const data::Batch none;
        return {.batch = none};
    }
    std::unique_ptr<methods::MethodOptions> options_;
    std::vector<nn::Site*> sites_;
};

}  // namespace ether::test
