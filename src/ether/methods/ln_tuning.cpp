// LN-tuning (Zhao et al., arXiv 2312.11420): trains the model's norms and nothing else. Keys as in PEFT's
// ln_tuning tuner, which trains copies of whole norm layers.
#include <algorithm>
#include <nlohmann/json.hpp>

#include "ether/core/error.h"
#include "ether/core/near_name.h"
#include "ether/methods/adapter_config.h"
#include "ether/methods/methods.h"

namespace ether::methods {
namespace {

struct LnTuningOptions : MethodOptions {
    std::vector<std::string> norms;

    void from_config(nlohmann::json& config) override {
        if (const auto found = config.find("exclude_modules"); found != config.end() && !says_nothing(*found))
            fail(ErrorKind::adapter, "adapter_config.json: exclude_modules is not supported for LN_TUNING");
    }

    Fields fields() override {
        return {
            {.name = "norms",
             .value = &norms,
             .help = "norms to train: names that end a module path (input_layernorm); empty: all",
             .key = "target_modules"},
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
        auto is_named = [](const std::string& path, const std::string& name) {
            return path == name || path.ends_with("." + name);
        };
        for (const auto& name : options.norms)
            if (std::none_of(known.begin(), known.end(),
                             [&](const auto& path) { return is_named(path, name); }))
                fail(ErrorKind::usage, "--norms: no norm is named \"{}\"{}", name, did_you_mean(name, known));
        for (const auto& path : known)
            if (options.norms.empty() || std::any_of(options.norms.begin(), options.norms.end(),
                                                     [&](const auto& name) { return is_named(path, name); }))
                train(path, context);
    }

    void to_config(nlohmann::json& config) const override {
        config["target_modules"] = modules_;
        config.erase("bias");
    }

  private:
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
