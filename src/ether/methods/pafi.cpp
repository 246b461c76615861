// PaFi (Liao et al., arXiv 2305.16742, section 3.1): the weights that are smallest in magnitude are trained,
// all others stay: a mask that needs no data and serves every task. Entries of equal magnitude are taken in
// order of their places, so the budget is exact. --mask largest takes the other end.
#include <ATen/Functions.h>

#include "ether/methods/methods.h"
#include "ether/methods/selected_weights.h"

namespace ether::methods {
namespace {

struct PafiOptions : MethodOptions {
    double budget = 0.001;
    std::string mask = "smallest";

    Fields fields() override {
        return {
            budget_field(&budget),
            {.name = "mask",
             .value = &mask,
             .help = "which weights are trained, by magnitude",
             .choices = {"smallest", "largest"}},
        };
    }
};

class Pafi : public Adapter {
  public:
    Pafi(const PafiOptions& options, const MethodContext& context)
        : weights_("pafi", options.budget, context) {
        if (context.loading) return;
        const at::NoGradGuard no_grad;
        BestEntries best(weights_.budget());
        for (const nn::Site* site : context.sites) {
            const auto magnitude = site->linear.weight.reshape({-1}).abs();
            best.add(options.mask == "smallest" ? magnitude.neg() : magnitude, weights_.first_place(*site));
        }
        weights_.choose(best.best(weights_.budget()));
    }

    nn::SiteForms forms(const nn::Site& site, const nn::Pass& pass) override {
        return weights_.forms(site, pass);
    }
    bool reads_weights() const override { return true; }
    void to_config(nlohmann::json& config) const override { weights_.to_config(config); }

  private:
    SelectedWeights weights_;
};

}  // namespace

Method pafi() {
    return {"pafi",
            "PAFI",
            "the smallest weights of the adapted layers, trained in their place",
            3e-2,
            true,
            make_options<PafiOptions>,
            make_adapter<Pafi, PafiOptions>,
            ignores_nothing};
}

}  // namespace ether::methods
