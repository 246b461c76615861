// Magnitude: what DoRA (Liu et al., arXiv 2402.09353) does beside its low-rank part, on top of any method:
// each row of the weight W' that the methods before it have made is given a trained norm m, which starts as
// W's: diag(m / |W'|) W', the norms |W'| constant in backward. Behind a rotation or reflection of the input,
// which keeps the rows' norms, it is a trained factor of each output.
#include <ATen/Functions.h>

#include "ether/methods/methods.h"
#include "ether/ops/dispatch.h"

namespace ether::methods {
namespace {

using at::Tensor;

class Magnitude : public Adapter {
  public:
    Magnitude(const NoOptions&, const MethodContext& context) : magnitudes_(context.model) {
        for (const nn::Site* site : context.sites)
            magnitudes_[*site] = context.parameters.add(parameter_name(*site, "magnitude"),
                                                        row_norms(site->linear.weight).to(at::kFloat));
    }

    // The site's forms are by now those of the methods before it.
    nn::SiteForms forms(const nn::Site& site, const nn::Pass&) override {
        const auto& magnitude = magnitudes_[site];
        nn::SiteForms forms;
        forms.post.emplace_back(nn::Scale{magnitude / current_norms(site).to(magnitude.scalar_type())});
        return forms;
    }

  private:
    static Tensor current_norms(const nn::Site& site) {
        const at::NoGradGuard no_grad;
        const auto& weight = site.linear.weight;
        if (site.forms.empty()) return row_norms(weight);
        const auto wide = weight.to(ops::accumulate_dtype(weight.scalar_type()));
        return row_norms(nn::merged(site.forms, wide, {}).first);
    }

    BySite<Tensor> magnitudes_;
};

}  // namespace

Method magnitude() {
    return {"magnitude",
            "MAGNITUDE",
            "the norm of each row of a weight, as in DoRA; behind --and on top of another method",
            2e-2,
            true,
            make_options<NoOptions>,
            make_adapter<Magnitude, NoOptions>,
            ignores_nothing};
}

}  // namespace ether::methods
