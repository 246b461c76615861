// HiWi (Liao et al., arXiv 2305.16742, section 4.2): a small network acts on the parameters, not on
// activations: a layer's bias b (out) becomes b + s relu(b D) U with D (out, r) and U (r, out), which is zero
// at the start. Only the new bias is kept in an adapter's file, so a trained layer costs nothing more than
// the base. On weights: W + s relu(W D) U with D (in, r), U (r, in), whose change has rank r: the file holds
// its factors. PEFT lacks it.
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
    std::string on = "bias";

    Fields fields() override {
        return {
            rank_field(&rank, "r, the width between D and U", "rank"),
            {.name = "scale",
             .value = &scale,
             .help = "s, of what is added",
             .low = kLeastScale,
             .high = 1e6},
            {.name = "on",
             .value = &on,
             .help =
                 "what the network moves: a layer's bias, or its weight, for models whose biases are zero",
             .choices = {"bias", "weight"}},
        };
    }
};

class Hiwi : public Adapter {
  public:
    Hiwi(const HiwiOptions& options, const MethodContext& context)
        : scale_(options.scale),
          on_weights_(options.on == "weight"),
          has_network_(!context.loading),
          targets_(context.sites),
          sites_(context.model) {
        for (const nn::Site* site : context.sites) {
            if (on_weights_)
                add_on_weight(*site, options.rank, context);
            else
                add_on_bias(*site, options.rank, context);
        }
    }

    nn::SiteForms forms(const nn::Site& site, const nn::Pass&) override {
        if (on_weights_) {
            const auto [a, b] = factors(site);
            return low_rank(a, b, 1, 0);
        }
        nn::SiteForms forms;
        forms.output.emplace_back(nn::Shift{bias_change(sites_[site])});
        return forms;
    }

    bool reads_weights() const override { return on_weights_ && has_network_; }
    bool reads_bias(const nn::Site& site) const override { return sites_[site].base.defined(); }

    void to_tensors(io::NamedTensors& tensors) const override {
        const at::NoGradGuard no_grad;
        for (const nn::Site* site : targets_) {
            const auto& own = sites_[*site];
            if (!own.down.defined()) continue;
            if (!on_weights_) {
                tensors.emplace_back(parameter_name(*site, kBias), own.base + bias_change(own));
                continue;
            }
            const auto [a, b] = factors(*site);
            tensors.emplace_back(parameter_name(*site, kA), a);
            tensors.emplace_back(parameter_name(*site, kB), b);
        }
    }

  private:
    static constexpr const char *kBias = "hiwi_bias", *kA = "hiwi_A.weight", *kB = "hiwi_B.weight";

    // The network, or what a file holds of it: a bias, or factors of a weight's change.
    struct Site {
        Tensor base, down, up, bias, a, b;
    };

    void add_on_bias(const nn::Site& site, int64_t rank, const MethodContext& context) {
        const auto& bias = site.linear.bias;
        // relu(0 D) U has no gradient.
        if (!bias.defined() || !bias.any().item<bool>())
            fail(
                ErrorKind::usage,
                "{}: this layer's bias, on which hiwi acts, is {}; name layers that have one with --targets, "
                "or give --on weight",
                site.name(), bias.defined() ? "zero" : "missing");
        auto& own = sites_[site];
        own.base = bias.detach().to(bias.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
        if (context.loading)
            own.bias = add(site, kBias, own.base.to(at::kFloat, false, true), true, context);
        else
            add_network(own, site, site.linear.out(), rank, context);
    }

    void add_on_weight(const nn::Site& site, int64_t rank, const MethodContext& context) {
        auto& own = sites_[site];
        if (context.loading) {
            own.a = add(site, kA, at::zeros({rank, site.linear.in()}), true, context);
            own.b = add(site, kB, at::zeros({site.linear.out(), rank}), true, context);
        } else {
            add_network(own, site, site.linear.in(), rank, context);
        }
    }

    static void add_network(Site& own, const nn::Site& site, int64_t width, int64_t rank,
                            const MethodContext& context) {
        const auto down = uniform({width, rank}, 1 / std::sqrt(static_cast<double>(width)),
                                  context.random.stream(site.name()));
        own.down = add(site, "hiwi_D", down, false, context);
        own.up = add(site, "hiwi_U", at::zeros({rank, width}), false, context);
    }

    static Tensor add(const nn::Site& site, const char* name, const Tensor& value, bool saved,
                      const MethodContext& context) {
        return context.parameters.add(parameter_name(site, name), value, nn::ParameterGroup::adapter, true,
                                      saved);
    }

    Tensor bias_change(const Site& own) const {
        if (own.bias.defined()) return own.bias - own.base;
        return own.base.to(own.down.scalar_type()).unsqueeze(0).mm(own.down).relu().mm(own.up).squeeze(0) *
               scale_;
    }

    // A (r, in) and B (out, r) of a weight's change.
    std::pair<Tensor, Tensor> factors(const nn::Site& site) const {
        const auto& own = sites_[site];
        if (own.a.defined()) return {own.a, own.b};
        return {own.up, site.linear.weight.to(own.down.scalar_type()).mm(own.down).relu() * scale_};
    }

    const double scale_;
    const bool on_weights_, has_network_;
    const std::vector<nn::Site*> targets_;
    BySite<Site> sites_;
};

}  // namespace

Method hiwi() {
    return {"hiwi",
            "HIWI",
            "an MLP's biases (--on weight: weights), moved by a small network that is folded away on save",
            3e-3,
            true,
            make_options<HiwiOptions>,
            make_adapter<Hiwi, HiwiOptions>,
            ignores_nothing,
            "mlp"};
}

}  // namespace ether::methods
