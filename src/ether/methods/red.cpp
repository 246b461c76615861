// RED, representation editing (Wu et al., arXiv 2402.15179; published code: mlwu22/RED, model.py): each
// feature of an MLP's result is scaled and shifted before the residual is added: s * (W x + b) + c, with s =
// 1 and c = 0 at the start. Trained values: 2 out a layer. PEFT lacks it.
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>

#include "ether/methods/methods.h"

namespace ether::methods {
namespace {

class Red : public Adapter {
  public:
    Red(const NoOptions&, const MethodContext& context) : edits_(context.model) {
        for (const nn::Site* site : context.sites) {
            auto add = [&](const char* name, const at::Tensor& value) {
                return context.parameters.add(parameter_name(*site, name), value);
            };
            edits_[*site] = {add("red_scaling", at::ones({site->linear.out()})),
                             add("red_bias", at::zeros({site->linear.out()}))};
        }
    }

    nn::SiteForms forms(const nn::Site& site, const nn::Pass&) override {
        const auto& [scaling, bias] = edits_[site];
        nn::SiteForms forms;
        forms.output.emplace_back(nn::Scale{scaling});
        forms.output.emplace_back(nn::Shift{bias});
        return forms;
    }

  private:
    struct Edit {
        at::Tensor scaling, bias;  // (out)
    };
    BySite<Edit> edits_;
};

}  // namespace

Method red() {
    return {"red",
            "RED",
            "each feature of an MLP's result scaled and shifted",
            2e-2,
            true,
            make_options<NoOptions>,
            make_adapter<Red, NoOptions>,
            ignores_nothing,
            "mlp-output"};
}

}  // namespace ether::methods
