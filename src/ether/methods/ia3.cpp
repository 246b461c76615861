// (IA)^3 (Liu et al., arXiv 2205.05638, section 3.3): one learned factor a feature, all ones at the start, on
// a layer's output, bias included: y = l * (W x + b). Feedforward layers, the second of each MLP, have it on
// their input: y = W(l * x) + b. Keys, names and shapes as in PEFT's ia3 tuner.
#include <ATen/ops/ones.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "ether/core/error.h"
#include "ether/core/near_name.h"
#include "ether/core/options.h"
#include "ether/core/utf8.h"
#include "ether/methods/methods.h"
#include "ether/methods/targets.h"
#include "ether/nn/forms.h"

namespace ether::methods {
namespace {

constexpr const char* kFeedforward = "feedforward_modules";

struct Ia3Options : MethodOptions {
    std::string feedforward;

    Fields fields() override {
        return {
            {.name = "feedforward-modules",
             .value = &feedforward,
             .help = "targets whose input is scaled, not their output: names that end a module path (the "
                     "paper: output.dense in a BERT, down_proj in a Llama), or a regular expression",
             .joined = true},
        };
    }

    void from_config(nlohmann::json& config) override {
        auto& modules = config[kFeedforward];
        modules = modules.is_null() ? "" : expression_of(modules, kFeedforward);
    }
};

class Ia3 : public Adapter {
  public:
    Ia3(const Ia3Options& options, const MethodContext& context)
        : names_(is_name_list(options.feedforward) ? split_list(options.feedforward)
                                                   : std::vector<std::string>()),
          factors_(context.model) {
        const auto is_feedforward = feedforward_filter(options.feedforward);
        for (const nn::Site* site : context.sites) {
            const auto& path = site->name();
            auto& [factor, on_input] = factors_[*site];
            on_input = is_feedforward(path);
            targets_.push_back(path);
            if (on_input) feedforward_.push_back(path);
            factor = context.parameters.add(
                parameter_name(*site, "ia3_l"),
                on_input ? at::ones({1, site->linear.in()}) : at::ones({site->linear.out(), 1}));
        }
        check_feedforward(options.feedforward);
    }

    nn::SiteForms forms(const nn::Site& site, const nn::Pass&) override {
        const auto& [factor, on_input] = factors_[site];
        nn::SiteForms forms;
        (on_input ? forms.pre : forms.output).emplace_back(nn::Scale{factor.flatten()});
        return forms;
    }

    // PEFT's IA3Config knows no block numbers, and wants feedforward_modules to be among target_modules:
    // where either stands in the way, both are whole paths.
    void to_config(nlohmann::json& config) const override {
        const auto& targets = config["target_modules"];
        const bool subset = feedforward_.empty() == names_.empty() &&
                            std::all_of(names_.begin(), names_.end(), [&](const auto& name) {
                                return std::find(targets.begin(), targets.end(), name) != targets.end();
                            });
        config[kFeedforward] = names_;
        if (subset && !config.contains("layers_to_transform")) return;
        config.erase("layers_to_transform");
        config["target_modules"] = targets_;
        config[kFeedforward] = feedforward_;
    }

  private:
    struct Factor {
        at::Tensor factor;
        bool on_input = false;
    };

    // As PEFT matches names: by the path's end, not by whole parts.
    PathFilter feedforward_filter(const std::string& expression) const {
        if (!is_name_list(expression)) return path_filter(expression, "--feedforward-modules");
        return [this](const std::string& path) {
            return std::any_of(names_.begin(), names_.end(),
                               [&](const auto& name) { return path.ends_with(name); });
        };
    }

    // One that is no target would leave its layer's output scaled without a word.
    void check_feedforward(const std::string& expression) const {
        auto is_target_end = [&](const auto& name) {
            return std::any_of(targets_.begin(), targets_.end(),
                               [&](const auto& path) { return path.ends_with(name); });
        };
        for (const auto& name : names_)
            if (!is_target_end(name))
                fail(ErrorKind::usage, "--feedforward-modules: no target is named \"{}\"{}",
                     printable(name, kShownPattern), did_you_mean(name, targets_));
        if (!is_name_list(expression) && feedforward_.empty())
            fail(ErrorKind::usage, "--feedforward-modules: \"{}\" matches none of the targets, such as {}",
                 printable(expression, kShownPattern), targets_.front());
    }

    const std::vector<std::string> names_;            // that end the paths of feedforward layers
    std::vector<std::string> targets_, feedforward_;  // module paths
    BySite<Factor> factors_;
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
