// GraLoRA, granular low-rank adaptation (Jung et al., arXiv 2505.20355): W is cut into k x k blocks, each
// with a low-rank addition of rank r / k, so an outlier in one input touches its own column of blocks alone.
// Piece n of the input times A_n (in/k, r) gives k bundles of r / k values, bundle j of which goes to piece j
// of the output, through B_j (r, out/k). The scale is alpha / (r + h); an ordinary LoRA of rank h may be
// added (hybrid). A is kaiming-uniform (a = sqrt(5)), B zero at the start. Keys, shapes and defaults as in
// PEFT's gralora tuner.
#include <ATen/Functions.h>

#include <cmath>

#include "ether/core/error.h"
#include "ether/methods/biases.h"
#include "ether/methods/methods.h"

namespace ether::methods {
namespace {

using at::Tensor;

struct GraloraOptions : MethodOptions {
    static constexpr const char* kBiasOnly = "gralora_only";

    int64_t rank = 32, pieces = 2, hybrid = 0;
    double alpha = 64, dropout = 0;

    Fields fields() override {
        return {
            rank_field(&rank, "r, the sum of a column of blocks' ranks; a multiple of --pieces"),
            alpha_field(&alpha, "alpha", "scale: alpha / (r + hybrid rank)"),
            {.name = "pieces",
             .value = &pieces,
             .help = "k: a weight is cut into k x k blocks; must divide a layer's widths",
             .low = 1,
             .high = 1 << 16,
             .key = "gralora_k"},
            {.name = "hybrid-rank",
             .value = &hybrid,
             .help = "rank of an ordinary LoRA beside it; 0: none",
             .low = 0,
             .high = 1 << 16,
             .key = "hybrid_r"},
            dropout_field(&dropout, "gralora_dropout"),
        };
    }
};

class Gralora : public Adapter {
  public:
    Gralora(const GraloraOptions& options, const MethodContext& context)
        : options_(options),
          scale_(options.alpha / static_cast<double>(options.rank + options.hybrid)),
          factors_(context.model) {
        const int64_t k = options.pieces, r = options.rank, h = options.hybrid;
        if (r % k != 0)
            fail(ErrorKind::usage,
                 "--rank: {} is not a multiple of --pieces {}; each block's rank is their quotient", r, k);
        exchange_ = at::arange(k * r, at::TensorOptions(context.model.device()).dtype(at::kLong))
                        .view({k, k, r / k})
                        .transpose(0, 1)
                        .flatten();
        for (const nn::Site* site : context.sites) {
            const int64_t in = site->linear.in(), out = site->linear.out();
            const int64_t piece = divided(*site, "input", in, "pieces", k);
            const auto random = context.random.stream(site->name());
            auto add = [&](const char* name, const Tensor& value) {
                return context.parameters.add(parameter_name(*site, name), value);
            };
            auto& factors = factors_[*site];
            factors.a =
                add("gralora_A", uniform({k, piece, r}, 1 / std::sqrt(static_cast<double>(piece)), random));
            factors.b = add("gralora_B", at::zeros({k, r, divided(*site, "output", out, "pieces", k)}));
            if (h == 0) continue;
            factors.general_a =
                add("gralora_A_general.weight", kaiming_uniform({h, in}, random.stream("general")));
            factors.general_b = add("gralora_B_general.weight", at::zeros({out, h}));
        }
    }

    nn::SiteForms forms(const nn::Site& site, const nn::Pass&) override {
        const auto& [a, b, general_a, general_b] = factors_[site];
        auto forms =
            general_a.defined() ? low_rank(general_a, general_b, scale_, options_.dropout) : nn::SiteForms();
        auto& chain = forms.delta.emplace_back();
        if (options_.dropout > 0) chain.emplace_back(nn::Dropout{options_.dropout});
        chain.emplace_back(nn::BlockDiagonal{a});
        if (options_.pieces > 1) chain.emplace_back(nn::Permute{exchange_});
        chain.emplace_back(nn::BlockDiagonal{b * scale_});
        return forms;
    }

  private:
    struct Factors {
        Tensor a, b;  // (k, in/k, r), (k, r, out/k)
        Tensor general_a, general_b;
    };
    const GraloraOptions options_;
    double scale_;
    Tensor exchange_;
    BySite<Factors> factors_;
};

bool ignores(const std::string& key, const nlohmann::json&) { return key == "init_weights"; }

}  // namespace

Method gralora() {
    return {"gralora",
            "GRALORA",
            "low-rank additions to each of a weight's k x k blocks",
            2e-3,
            true,
            make_options_with_bias<GraloraOptions>,
            make_adapter_with_bias<Gralora, GraloraOptions>,
            ignores};
}

}  // namespace ether::methods
