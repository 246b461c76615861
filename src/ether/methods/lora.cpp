// LoRA (Hu et al., arXiv 2106.09685): W + s B A with A (r, in) kaiming-uniform (a = sqrt(5)), B (out, r) zero
// and s = alpha / r, or alpha / sqrt(r) (rsLoRA, arXiv 2312.03732). DoRA (Liu et al., arXiv 2402.09353) gives
// each row of that sum a trained norm m, which starts as W's: diag(m / |W + s B A|) (W + s B A), the norms
// constant in backward (section 4.3). Keys and defaults as in PEFT's lora tuner.
#include <ATen/Functions.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "ether/methods/methods.h"

namespace ether::methods {
namespace {

using at::Tensor;

struct LoraOptions : MethodOptions {
    int64_t rank = 8;
    double alpha = 16, dropout = 0;
    bool rslora = false, dora = false;
    std::string bias = "none";

    Fields fields() override {
        return {
            rank_field(&rank, "r, the width of A and B"),
            alpha_field(&alpha, "lora_alpha"),
            rslora_field(&rslora),
            {.name = "dora",
             .value = &dora,
             .help = "train the norm of each row of W + s B A, too (DoRA)",
             .key = "use_dora"},
            dropout_field(&dropout, "lora_dropout"),
            {.name = "bias",
             .value = &bias,
             .help = "biases to train as well: none, those of adapted layers, or all of the model",
             .choices = {"none", "lora_only", "all"}},
        };
    }
};

struct LoraSite {
    Tensor a, b;
    // DoRA's: m (out), and the squared norms of W's rows.
    Tensor magnitude, squares;
};

class Lora : public Adapter {
  public:
    Lora(const LoraOptions& options, const MethodContext& context)
        : scale_(lora_scale(options.alpha, options.rank, options.rslora)),
          dropout_(options.dropout),
          dora_(options.dora),
          sites_(context.model) {
        for (const nn::Site* site : context.sites) {
            auto& [a, b, magnitude, squares] = sites_[*site];
            auto add = [&](const char* name, const Tensor& value) {
                return context.parameters.add(parameter_name(*site, name), value);
            };
            a = add("lora_A.weight",
                    kaiming_uniform({options.rank, site->linear.in()}, context.random.stream(site->name())));
            b = add("lora_B.weight", at::zeros({site->linear.out(), options.rank}));
            if (!options.dora) continue;
            const auto& weight = site->linear.weight;
            const auto wide = weight.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
            squares = at::linalg_vector_norm(weight.detach(), 2, {1}, false, wide).square();
            magnitude = add("lora_magnitude_vector", squares.sqrt().to(at::kFloat));
        }
        if (options.bias != "none") train_biases(options.bias == "all", context);
    }

    nn::SiteForms forms(const nn::Site& site, const nn::Pass&) override {
        const auto& [a, b, magnitude, squares] = sites_[site];
        if (!magnitude.defined()) return low_rank(a, b, scale_, dropout_);
        const auto factor = magnitude / row_norms(site);
        // Dropout acts in the low-rank branch alone. PEFT also drops x before W for the part of the factor
        // that differs from 1, which takes a second product with W.
        auto forms = low_rank(a, factor.unsqueeze(1) * b, scale_, dropout_);
        forms.post.emplace_back(nn::Scale{factor});
        return forms;
    }

    // DoRA takes the norms of W's rows.
    bool reads_weights() const override { return dora_; }

  private:
    static void train_biases(bool all, const MethodContext& context) {
        const std::string suffix = ".bias";
        for (const auto& [name, slots] : context.model.tensors()) {
            if (!name.ends_with(suffix) || context.parameters.find(name)) continue;
            const auto module = name.substr(0, name.size() - suffix.size());
            const bool adapted = std::any_of(context.sites.begin(), context.sites.end(),
                                             [&](const nn::Site* site) { return site->name() == module; });
            if (!adapted && !all) continue;
            train_copy(context.model, context.parameters, name,
                       module + (adapted ? ".base_layer" : "") + suffix);
        }
    }

    // |W + s B A| by row, without forming B A: |w|^2 + 2 s (W A^T)_o . b_o + s^2 b_o (A A^T) b_o.
    Tensor row_norms(const nn::Site& site) const {
        const at::NoGradGuard no_grad;
        const auto& [a, b, magnitude, squares] = sites_[site];
        const auto mixed = (site.linear.weight.to(a.scalar_type()).mm(a.t()) * b).sum(1);
        const auto own = (b.mm(a.mm(a.t())) * b).sum(1);
        return (squares + 2 * scale_ * mixed + scale_ * scale_ * own).clamp_min(0).sqrt();
    }

    double scale_, dropout_;
    bool dora_;
    BySite<LoraSite> sites_;
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
            "low-rank additions B A to a layer's weight (--dora: its rows' norms as well)",
            1e-3,
            true,
            make_options<LoraOptions>,
            make_adapter<Lora, LoraOptions>,
            ignores};
}

}  // namespace ether::methods
