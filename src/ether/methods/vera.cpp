// VeRA (Kopiczko et al., arXiv 2310.11454): W + diag(b) B diag(d) A. A (r, in) and B (out, r) are random,
// frozen and shared by all layers, which take the first columns of A and rows of B; each layer trains d (r)
// and b (out). Keys, defaults and A, B themselves as in PEFT's vera tuner.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>

#include "ether/core/error.h"
#include "ether/methods/biases.h"
#include "ether/methods/methods.h"

namespace ether::methods {
namespace {

using at::Tensor;

struct VeraOptions : MethodOptions {
    static constexpr const char* kBiasOnly = "vera_only";

    int64_t rank = 256, key = 0;
    double initial = 0.1, dropout = 0;
    bool save_projection = true;

    Fields fields() override {
        return {
            rank_field(&rank, "r, the width of the frozen A and B"),
            {.name = "d-initial",
             .value = &initial,
             .help = "what d, the factors between A and B, start as",
             .low = -1e3,
             .high = 1e3},
            {.name = "projection-prng-key",
             .value = &key,
             .help = "seed of A and B, as in PEFT",
             .low = 0,
             .high = 9e15},
            {.name = "save-projection",
             .value = &save_projection,
             .help = "keep A and B in the adapter's file; else they are drawn again when it is loaded"},
            dropout_field(&dropout, "vera_dropout"),
        };
    }
};

class Vera : public Adapter {
  public:
    Vera(const VeraOptions& options, const MethodContext& context)
        : dropout_(options.dropout), factors_(context.model) {
        if (options.initial == 0 && !context.loading)
            fail(ErrorKind::usage, "--d-initial: at 0, with b at 0 as well, nothing would ever change");
        int64_t in = 0, out = 0;
        for (const nn::Site* site : context.sites) {
            in = std::max(in, site->linear.in());
            out = std::max(out, site->linear.out());
            factors_[*site] = {context.parameters.add(parameter_name(*site, "vera_lambda_b"),
                                                      at::zeros({site->linear.out()})),
                               context.parameters.add(parameter_name(*site, "vera_lambda_d"),
                                                      at::full({options.rank}, options.initial, at::kFloat))};
        }
        // Drawn as PEFT does: A, then B, kaiming-uniform, from torch's generator.
        const auto generator = at::make_generator<at::CPUGeneratorImpl>(static_cast<uint64_t>(options.key));
        auto drawn = [&](const char* name, int64_t rows, int64_t columns) {
            const double bound = std::sqrt(3.0) * (std::sqrt(2.0) / std::sqrt(static_cast<double>(columns)));
            const auto value = at::empty({rows, columns}, at::kFloat).uniform_(-bound, bound, generator);
            return context.parameters.add(name, value, nn::ParameterGroup::adapter, false,
                                          options.save_projection);
        };
        a_ = drawn("vera_A", options.rank, in);
        b_ = drawn("vera_B", out, options.rank);
    }

    nn::SiteForms forms(const nn::Site& site, const nn::Pass&) override {
        const auto& [b, d] = factors_[site];
        const auto scaled = [shared = b_.narrow(0, 0, site.linear.out())](const std::vector<Tensor>& of) {
            return shared * of[1] * of[0].unsqueeze(1);
        };
        auto forms = branch(nn::BlockDiagonal{a_.narrow(1, 0, site.linear.in()).t().unsqueeze(0)}, dropout_);
        forms.delta.front().emplace_back(nn::Dense{{b, d}, scaled, site.linear.out()});
        return forms;
    }

  private:
    struct Factors {
        Tensor b, d;
    };
    double dropout_;
    Tensor a_, b_;
    BySite<Factors> factors_;
};

bool ignores(const std::string& key, const nlohmann::json&) { return key == "init_weights"; }

}  // namespace

Method vera() {
    return {"vera",
            "VERA",
            "factors around random matrices that all layers share",
            3e-2,
            true,
            make_options_with_bias<VeraOptions>,
            make_adapter_with_bias<Vera, VeraOptions>,
            ignores};
}

}  // namespace ether::methods
