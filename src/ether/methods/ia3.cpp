// (IA)^3 (Liu et al., arXiv 2205.05638, section 3.3): one learned factor a feature, all ones at the start, on
// a layer's output, bias included: y = l * (W x + b). Feedforward layers, the second of each MLP, have it on
// their input: y = W(l * x) + b. Keys, names and shapes as in PEFT's ia3 tuner.
#include <ATen/ops/ones.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "ether/core/error.h"
#include "ether/core/near_name.h"
#include "ether/methods/methods.h"
#include "ether/nn/forms.h"

namespace ether::methods {
namespace {

struct Ia3Options : MethodOptions {
    std::vector<std::string> feedforward;

    Fields fields() override {
        return {
            {.name = "feedforward-modules",
             .value = &feedforward,
             .help = "targets whose input is scaled, not their output: a list of names that end a module "
                     "path (the paper: output.dense in a BERT, down_proj in a Llama)"},
        };
    }

    // As PEFT matches them: by the path's end, not by whole parts.
    bool is_feedforward(const nn::Site& site) const {
        return std::any_of(feedforward.begin(), feedforward.end(),
                           [&](const auto& name) { return site.name().ends_with(name); });
    }
};

class Ia3 : public Adapter {
  public:
    Ia3(const Ia3Options& options, const MethodContext& context) : options_(options) {
        factors_.resize(context.model.sites().size());
        for (const nn::Site* site : context.sites) {
            const bool feedforward = options.is_feedforward(*site);
            targets_.push_back(site->name());
            if (feedforward) feedforward_.push_back(site->name());
            factors_[static_cast<size_t>(site->index)] = context.parameters.add(
                parameter_name(*site, "ia3_l"),
                feedforward ? at::ones({1, site->linear.in()}) : at::ones({site->linear.out(), 1}));
        }
        check_names();
    }

    nn::SiteForms forms(const nn::Site& site, const nn::Pass&) override {
        nn::SiteForms forms;
        auto& side = options_.is_feedforward(site) ? forms.pre : forms.output;
        side.emplace_back(nn::Scale{factors_[static_cast<size_t>(site.index)].flatten()});
        return forms;
    }

    // PEFT's IA3Config knows no block numbers, and wants feedforward_modules to be among target_modules:
    // where either stands in the way, both are whole paths.
    void to_config(nlohmann::json& config) const override {
        config.erase("bias");
        const auto& targets = config["target_modules"];
        auto is_target = [&](const auto& name) {
            return std::find(targets.begin(), targets.end(), name) != targets.end();
        };
        const bool subset = !targets.is_array() ||
                            std::all_of(options_.feedforward.begin(), options_.feedforward.end(), is_target);
        if (subset && !config.contains("layers_to_transform")) return;
        config.erase("layers_to_transform");
        config["target_modules"] = targets_;
        config["feedforward_modules"] = feedforward_;
    }

  private:
    // A name that is no target would leave its layer's output scaled without a word.
    void check_names() const {
        for (const auto& name : options_.feedforward)
            if (std::none_of(targets_.begin(), targets_.end(),
                             [&](const auto& path) { return path.ends_with(name); }))
                fail(ErrorKind::usage, "--feedforward-modules: no target is named \"{}\"{}", name,
                     did_you_mean(name, targets_));
    }

    const Ia3Options options_;
    std::vector<std::string> targets_, feedforward_;  // module paths
    std::vector<at::Tensor> factors_;                 // by site index
};

// How a new adapter would start; a trained one holds its factors.
bool ignores(const std::string& key, const nlohmann::json&) { return key == "init_ia3_weights"; }

}  // namespace

Method ia3() {
    return {"ia3",
            "IA3",
            "learned factors on a layer's output, or its input (--feedforward-modules)",
            2e-2,
            true,
            make_options<Ia3Options>,
            make_adapter<Ia3, Ia3Options>,
            ignores};
}

}  // namespace ether::methods
