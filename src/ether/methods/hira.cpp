// HiRA, Hadamard high-rank adaptation (Huang et al., ICLR 2025): W * (1 + B A), elementwise, a change of high
// rank by a low-rank factor, with A (r, in) kaiming-uniform (a = sqrt(5)) and B (out, r) zero. Keys and
// defaults as in PEFT's hira tuner.
#include <ATen/Functions.h>

#include "ether/methods/methods.h"

namespace ether::methods {
namespace {

using at::Tensor;

struct HiraOptions : MethodOptions {
    int64_t rank = 32;
    double dropout = 0;

    Fields fields() override {
        return {
            rank_field(&rank, "r, the width of A and B"),
            dropout_field(&dropout, "hira_dropout"),
        };
    }
};

class Hira : public Adapter {
  public:
    Hira(const HiraOptions& options, const MethodContext& context)
        : dropout_(options.dropout), factors_(context.model) {
        for (const nn::Site* site : context.sites)
            factors_[*site] = {context.parameters.add(parameter_name(*site, "hira_A"),
                                                      kaiming_uniform({options.rank, site->linear.in()},
                                                                      context.random.stream(site->name()))),
                               context.parameters.add(parameter_name(*site, "hira_B"),
                                                      at::zeros({site->linear.out(), options.rank}))};
    }

    nn::SiteForms forms(const nn::Site& site, const nn::Pass&) override {
        const auto& [a, b] = factors_[site];
        const auto change = [weight = site.linear.weight](const std::vector<Tensor>& of) {
            return of[1].mm(of[0]) * weight;
        };
        return dense(site, {a, b}, change, dropout_);
    }

    bool reads_weights() const override { return true; }

  private:
    struct Factors {
        Tensor a, b;
    };
    double dropout_;
    BySite<Factors> factors_;
};

// PEFT 0.21 reads rank_pattern and gives every layer r all the same.
bool ignores(const std::string& key, const nlohmann::json&) {
    return key == "init_weights" || key == "rank_pattern";
}

}  // namespace

Method hira() {
    return {"hira",
            "HIRA",
            "each weight times one plus a low-rank factor",
            5e-3,
            true,
            make_options<HiraOptions>,
            make_adapter<Hira, HiraOptions>,
            ignores};
}

}  // namespace ether::methods
