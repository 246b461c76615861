// LN-tuning (Zhao et al., arXiv 2312.11420): trains the model's norms and nothing else. Keys as in PEFT's
// ln_tuning tuner, which trains copies of whole norm layers.
#include <algorithm>
#include <nlohmann/json.hpp>

#include "ether/core/error.h"
#include "ether/core/near_name.h"
#include "ether/core/options.h"
#include "ether/core/utf8.h"
#include "ether/methods/adapter_config.h"
#include "ether/methods/methods.h"
#include "ether/methods/targets.h"

namespace ether::methods {
namespace {

constexpr const char *kTargets = "target_modules", *kExcluded = "exclude_modules";

struct LnTuningOptions : MethodOptions {
    std::string norms, excluded;

    void from_config(nlohmann::json& config) override {
        for (const char* key : {kTargets, kExcluded})
            config[key] = says_nothing(config[key]) ? "" : expression_of(config[key], key);
        excluded = config[kExcluded].get<std::string>();
    }

    Fields fields() override {
        return {
            {.name = "norms",
             .value = &norms,
             .help = "norms to train: names that end a module path (input_layernorm), or a regular "
                     "expression; empty: all",
             .key = kTargets,
             .joined = true},
        };
    }
};

class LnTuning : public Adapter {
  public:
    LnTuning(const LnTuningOptions& options, const MethodContext& context) {
        constexpr std::string_view weight = ".weight";
        std::vector<std::string> known;
        for (const auto& [name, slots] : context.model.tensors()) {
            // The only vectors among weights.
            if (!name.ends_with(weight) || slots.front()->dim() != 1) continue;
            known.push_back(name.substr(0, name.size() - weight.size()));
        }
        auto names = known;
        for (const auto& path : known) names.push_back(path.substr(path.rfind('.') + 1));
        const auto& norms = options.norms;
        auto need = [&](const std::string& expression) {
            if (std::none_of(known.begin(), known.end(), path_filter(expression, kNorms)))
                fail(ErrorKind::usage, "{}: no norm is named \"{}\"{}", kNorms,
                     printable(expression, kShownPattern), did_you_mean(expression, names));
        };
        if (is_name_list(norms))
            for (const auto& name : split_list(norms)) need(name);
        else
            need(norms);
        const auto wanted = path_filter(norms, kNorms), unwanted = path_filter(options.excluded, kNorms);
        for (const auto& path : known)
            if ((norms.empty() || wanted(path)) && !unwanted(path)) train(path, context);
    }

    void to_config(nlohmann::json& config) const override { config[kTargets] = modules_; }

  private:
    static constexpr const char* kNorms = "--norms";

    void train(const std::string& path, const MethodContext& context) {
        for (const char* part : {".weight", ".bias"}) {
            const auto name = path + part;
            // One that is trained whole already stays so.
            if (!context.model.tensors().contains(name) || context.parameters.find(name)) continue;
            train_copy(context.model, context.parameters, name, path + ".ln_tuning_layers" + part);
            if (modules_.empty() || modules_.back() != path) modules_.push_back(path);
        }
    }

    std::vector<std::string> modules_;
};

}  // namespace

Method ln_tuning() {
    return {"ln-tuning",
            "LN_TUNING",
            "the model's norms",
            5e-3,
            false,
            make_options<LnTuningOptions>,
            make_adapter<LnTuning, LnTuningOptions>,
            ignores_nothing};
}

}  // namespace ether::methods
