// DeLoRA (Bini et al., arXiv 2503.18225): W + (lambda / r) sum_k b_k a_k^T diag(w) / (|b_k| |a_k|), so that
// lambda alone, trained, says how far a layer may go from W; w (in), the norms of W's columns, is frozen and
// saved. Norms are at least 1e-4. A (r, in) starts kaiming-uniform, B (out, r) zero. Keys as in PEFT's delora
// tuner, and defaults but lambda: a first step goes as far as it allows, and PEFT's 15 is far for many
// models.
#include <ATen/Functions.h>

#include "ether/methods/biases.h"
#include "ether/methods/methods.h"
#include "ether/methods/site_numbers.h"

namespace ether::methods {
namespace {

using at::Tensor;

struct DeloraOptions : MethodOptions {
    static constexpr const char* kBiasOnly = "delora_only";

    int64_t rank = 8;
    double boundary = 1, dropout = 0;
    NumbersByName ranks, boundaries;

    Fields fields() override {
        return {
            rank_field(&rank, "r, the width of A and B"),
            {.name = "lambda",
             .value = &boundary,
             .help = "what lambda, the bound of the change, starts as",
             .low = kLeastScale,
             .high = 1e6,
             .key = "delora_lambda"},
            rank_pattern_field(&ranks),
            {.name = "lambda-pattern",
             .value = &boundaries,
             .help = "another lambda for layers whose paths end so: q_proj=3",
             .low = 0,
             .high = 1e6},
            dropout_field(&dropout, "module_dropout"),
        };
    }
};

class Delora : public Adapter {
  public:
    Delora(const DeloraOptions& options, const MethodContext& context)
        : dropout_(options.dropout), sites_(context.model) {
        const auto ranks = site_numbers(context, "rank-pattern", options.ranks, options.rank);
        const auto boundaries = site_numbers(context, "lambda-pattern", options.boundaries, options.boundary);
        for (const nn::Site* site : context.sites) {
            const auto& linear = site->linear;
            const int64_t rank = ranks[*site];
            auto add = [&](const char* name, const Tensor& value, bool trained = true) {
                return context.parameters.add(parameter_name(*site, name), value, nn::ParameterGroup::adapter,
                                              trained);
            };
            sites_[*site] = {
                add("delora_A", kaiming_uniform({rank, linear.in()}, context.random.stream(site->name()))),
                add("delora_B", at::zeros({linear.out(), rank})),
                add("delora_lambda", at::full({1}, boundaries[*site], at::kFloat)),
                add("delora_w_norm",
                    at::linalg_vector_norm(linear.weight.detach().to(at::kFloat), 2, {0}, false), false)};
        }
    }

    nn::SiteForms forms(const nn::Site& site, const nn::Pass&) override {
        constexpr double kLeastNorm = 1e-4;
        const auto& [a, b, lambda, w] = sites_[site];
        const auto factor = lambda / static_cast<double>(a.size(0)) /
                            (a.norm(2, {1}).clamp_min(kLeastNorm) * b.norm(2, {0}).clamp_min(kLeastNorm));
        return low_rank(a * w, b * factor, 1, dropout_);
    }

  private:
    struct Site {
        Tensor a, b, lambda, w;
    };
    double dropout_;
    BySite<Site> sites_;
};

bool ignores(const std::string& key, const nlohmann::json&) { return key == "init_weights"; }

}  // namespace

Method delora() {
    return {"delora",
            "DELORA",
            "low-rank additions of unit vectors under a trained bound",
            2e-3,
            true,
            make_options_with_bias<DeloraOptions>,
            make_adapter_with_bias<Delora, DeloraOptions>,
            ignores};
}

}  // namespace ether::methods
