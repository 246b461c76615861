// LoRA (Hu et al., arXiv 2106.09685): W + s B A with A (r, in) kaiming-uniform (a = sqrt(5)), B (out, r) zero
// and s = alpha / r, or alpha / sqrt(r) (rsLoRA, arXiv 2312.03732). Keys and defaults as in PEFT's lora
// tuner.
#include <ATen/ops/zeros.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "ether/methods/methods.h"
#include "ether/nn/forms.h"

namespace ether::methods {
namespace {

struct LoraOptions : MethodOptions {
    int64_t rank = 8;
    double alpha = 16, dropout = 0;
    bool rslora = false;

    Fields fields() override {
        return {
            {.name = "rank",
             .value = &rank,
             .help = "r, the width of A and B",
             .low = 1,
             .high = 1 << 16,
             .key = "r"},
            {.name = "alpha",
             .value = &alpha,
             .help = "scale: alpha / r",
             .low = 0,
             .high = 1e6,
             .key = "lora_alpha"},
            {.name = "rslora",
             .value = &rslora,
             .help = "scale by alpha / sqrt(r) instead",
             .key = "use_rslora"},
            {.name = "dropout",
             .value = &dropout,
             .help = "dropout of a layer's input, in the low-rank branch only",
             .low = 0,
             .high = 0.99,
             .key = "lora_dropout"},
        };
    }
};

class Lora : public Adapter {
  public:
    Lora(const LoraOptions& options, const MethodContext& context) : dropout_(options.dropout) {
        const auto rank = static_cast<double>(options.rank);
        scale_ = options.alpha / (options.rslora ? std::sqrt(rank) : rank);
        factors_.resize(context.model.sites().size());
        for (const nn::Site* site : context.sites) {
            auto& [a, b] = factors_[static_cast<size_t>(site->index)];
            const int64_t in = site->linear.in();
            a = context.parameters.add(parameter_name(*site, "lora_A.weight"),
                                       uniform({options.rank, in}, 1 / std::sqrt(static_cast<double>(in)),
                                               context.random.stream(site->name())));
            b = context.parameters.add(parameter_name(*site, "lora_B.weight"),
                                       at::zeros({site->linear.out(), options.rank}));
        }
    }

    nn::SiteForms forms(const nn::Site& site, const nn::Pass&) override {
        const auto& [a, b] = factors_[static_cast<size_t>(site.index)];
        nn::SiteForms forms;
        forms.delta.emplace_back(nn::LowRank{a, b, scale_, dropout_});
        return forms;
    }

  private:
    double scale_, dropout_;
    std::vector<std::pair<at::Tensor, at::Tensor>> factors_;  // A, B by site index
};

// How a new adapter would start, and settings of features that are off. Starts that move the base's weights
// (PiSSA, OLoRA, ...) move them again at every load, so their adapters need a base that is not at hand.
bool ignores(const std::string& key, const nlohmann::json& value) {
    if (key == "init_lora_weights")
        return value.is_boolean() || value == "gaussian" || value == "orthogonal" || value == "mica";
    return key == "megatron_core" || key == "qalora_group_size" || key == "arrow_config";
}

}  // namespace

Method lora() {
    return {"lora",
            "LORA",
            "low-rank additions B A to a layer's weight",
            1e-3,
            true,
            make_options<LoraOptions>,
            make_adapter<Lora, LoraOptions>,
            ignores};
}

}  // namespace ether::methods
