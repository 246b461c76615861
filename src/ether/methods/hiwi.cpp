// HiWi (Liao et al., arXiv 2305.16742, section 4.2): a small network acts on the parameters, not on
// activations: a layer's bias b (out) becomes b + s relu(b D) U with D (out, r) and U (r, out), which is zero
// at the start. Only the new bias is kept in an adapter's file, so a trained layer costs nothing more than
// the base. PEFT lacks it.
#include <ATen/Functions.h>

#include <cmath>

#include "ether/core/error.h"
#include "ether/methods/methods.h"

namespace ether::methods {
namespace {

using at::Tensor;

struct HiwiOptions : MethodOptions {
    int64_t rank = 8;
    double scale = 1;

    Fields fields() override {
        return {
            rank_field(&rank, "r, the width between D and U", "rank"),
            {.name = "scale",
             .value = &scale,
             .help = "s, of what is added to a bias",
             .low = 0,
             .high = 1e6},
        };
    }
};

class Hiwi : public Adapter {
  public:
    Hiwi(const HiwiOptions& options, const MethodContext& context)
        : scale_(options.scale), targets_(context.sites), sites_(context.model) {
        for (const nn::Site* site : context.sites) {
            const auto& bias = site->linear.bias;
            // relu(0 D) U has no gradient.
            if (!bias.defined() || !bias.any().item<bool>())
                fail(ErrorKind::usage,
                     "{}: this layer's bias, on which hiwi acts, is {}; name layers that have one with "
                     "--targets, "
                     "or choose another method, e.g. red",
                     site->name(), bias.defined() ? "zero" : "missing");
            auto& [base, down, up, trained] = sites_[*site];
            base = bias.detach().to(bias.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
            const int64_t out = site->linear.out();
            auto add = [&](const char* name, const Tensor& value, bool saved) {
                return context.parameters.add(parameter_name(*site, name), value, nn::ParameterGroup::adapter,
                                              true, saved);
            };
            if (context.loading) {
                trained = add("hiwi_bias", base.to(at::kFloat, false, true), true);
                continue;
            }
            down = add("hiwi_D",
                       uniform({out, options.rank}, 1 / std::sqrt(static_cast<double>(out)),
                               context.random.stream(site->name())),
                       false);
            up = add("hiwi_U", at::zeros({options.rank, out}), false);
        }
    }

    nn::SiteForms forms(const nn::Site& site, const nn::Pass&) override {
        nn::SiteForms forms;
        forms.output.emplace_back(nn::Shift{change(sites_[site])});
        return forms;
    }

    void to_tensors(io::NamedTensors& tensors) const override {
        const at::NoGradGuard no_grad;
        for (const nn::Site* site : targets_)
            if (const auto& values = sites_[*site]; values.down.defined())
                tensors.emplace_back(parameter_name(*site, "hiwi_bias"), values.base + change(values));
    }

  private:
    struct Site {
        Tensor base, down, up, trained;
    };
    Tensor change(const Site& site) const {
        const auto& [base, down, up, trained] = site;
        if (trained.defined()) return trained - base;
        return base.to(down.scalar_type()).unsqueeze(0).mm(down).relu().mm(up).squeeze(0) * scale_;
    }

    double scale_;
    const std::vector<nn::Site*> targets_;
    BySite<Site> sites_;
};

}  // namespace

Method hiwi() {
    return {"hiwi",
            "HIWI",
            "an MLP's biases, moved by a small network that is folded away on save",
            1e-3,
            true,
            make_options<HiwiOptions>,
            make_adapter<Hiwi, HiwiOptions>,
            ignores_nothing,
            "mlp"};
}

}  // namespace ether::methods
