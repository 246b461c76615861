// RandLoRA (Albert et al., arXiv 2502.00987): W + (alpha / r) sum_n B_n diag(lambda_n) A diag(gamma_n), a
// change of full rank by N = ceil(min(in, out) / r) random bases. A (r, 1, d) and B (D, N, r) are frozen and
// shared; with d the smaller width of a layer and D the larger one, it takes their first entries and trains
// lambda (r, N), zero at the start, and gamma (N, d). Flattened, A's rows stand as (r, N) and B's columns as
// (N, r), as in the published code. Keys and defaults as in PEFT's randlora tuner, but bases are drawn in
// float32.
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "ether/core/error.h"
#include "ether/methods/biases.h"
#include "ether/methods/methods.h"

namespace ether::methods {
namespace {

using at::Tensor;

struct RandloraOptions : MethodOptions {
    static constexpr const char* kBiasOnly = "randlora_only";

    int64_t rank = 32;
    double alpha = 640, dropout = 0;

    Fields fields() override {
        return {
            rank_field(&rank, "r, the width of a base; a smaller one trains more values"),
            alpha_field(&alpha, "randlora_alpha"),
            dropout_field(&dropout, "randlora_dropout"),
        };
    }
    void from_config(nlohmann::json& config) override {
        if (config.contains("save_projection") && config["save_projection"] == false)
            fail(
                ErrorKind::adapter,
                "adapter_config.json: save_projection is false, so the random bases are not in the adapter's "
                "file, and PEFT draws them in a type that depends on its machine; save the adapter again "
                "with "
                "save_projection = True");
        config.erase("save_projection");
    }
};

class Randlora : public Adapter {
  public:
    Randlora(const RandloraOptions& options, const MethodContext& context)
        : rank_(options.rank),
          scale_(options.alpha / static_cast<double>(options.rank)),
          dropout_(options.dropout),
          factors_(context.model) {
        int64_t in = 0, out = 0;
        for (const nn::Site* site : context.sites) {
            in = std::max(in, site->linear.in()), out = std::max(out, site->linear.out());
            const int64_t small = std::min(site->linear.in(), site->linear.out()), bases = bases_for(small);
            factors_[*site] = {
                context.parameters.add(parameter_name(*site, "randlora_lambda"), at::zeros({rank_, bases})),
                context.parameters.add(
                    parameter_name(*site, "randlora_gamma"),
                    at::full({bases, small}, 1.0 / static_cast<double>(std::max(bases, small)), at::kFloat))};
        }
        const int64_t small = std::min(in, out), large = std::max(in, out);
        auto drawn = [&](const char* name, at::IntArrayRef shape) {
            const auto values = uniform(shape, 1, context.random.stream(name));
            return context.parameters.add(name, values / values.std(), nn::ParameterGroup::adapter, false);
        };
        a_ = drawn("randlora_A", {rank_, 1, small});
        b_ = drawn("randlora_B", {large, bases_for(small), rank_});
    }

    nn::SiteForms forms(const nn::Site& site, const nn::Pass&) override {
        const auto& [lambda, gamma] = factors_[site];
        const int64_t in = site.linear.in(), out = site.linear.out();
        const auto large = b_.narrow(0, 0, std::max(in, out)).narrow(1, 0, lambda.size(1)).flatten(1);
        const auto small = [shared = a_.narrow(2, 0, std::min(in, out)), scale = scale_,
                            turned = in > out](const std::vector<Tensor>& of) {
            const auto factor = (of[0].unsqueeze(2) * shared * (of[1] * scale)).flatten(0, 1);
            return turned ? factor.t() : factor;
        };
        const nn::Dense made{{lambda, gamma}, small, in <= out ? large.size(1) : out};
        auto forms = branch(in <= out ? nn::Form(made) : nn::BlockDiagonal{large.unsqueeze(0)}, dropout_);
        forms.delta.front().push_back(in <= out ? nn::Form(nn::BlockDiagonal{large.t().unsqueeze(0)}) : made);
        return forms;
    }

  private:
    struct Factors {
        Tensor lambda, gamma;
    };
    int64_t bases_for(int64_t small) const { return (small + rank_ - 1) / rank_; }

    int64_t rank_;
    double scale_, dropout_;
    Tensor a_, b_;
    BySite<Factors> factors_;
};

// How the bases were drawn, which a file that holds them need not say.
bool ignores(const std::string& key, const nlohmann::json&) {
    return key == "init_weights" || key == "projection_prng_key" || key == "sparse" || key == "very_sparse";
}

}  // namespace

Method randlora() {
    return {"randlora",
            "RANDLORA",
            "additions of full rank by factors around random bases that all layers share",
            1e-3,
            true,
            make_options_with_bias<RandloraOptions>,
            make_adapter_with_bias<Randlora, RandloraOptions>,
            ignores};
}

}  // namespace ether::methods
