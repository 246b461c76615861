// LoHa (Hyeon-Woo et al., FedPara, arXiv 2108.06098): W + (alpha / r) (w1_a w1_b) * (w2_a w2_b), elementwise,
// a matrix of rank r^2 at the price of rank 2 r: row (p, q) of A is w1_b[p] * w2_b[q], column (p, q) of B is
// w1_a[:, p] * w2_a[:, q]. All but w2_b, which is zero, start kaiming-uniform. Keys and defaults as in PEFT's
// loha tuner.
#include <ATen/ops/zeros.h>

#include "ether/methods/delta_dropout.h"
#include "ether/methods/methods.h"
#include "ether/methods/site_numbers.h"

namespace ether::methods {
namespace {

using at::Tensor;

struct LohaOptions : MethodOptions {
    int64_t rank = 8;
    double alpha = 8;
    NumbersByName ranks, alphas;
    DeltaDropout dropout{.scaled = true};

    Fields fields() override {
        auto fields = dropout.fields();
        fields.insert(fields.begin(), {rank_field(&rank, "r, the width of each of the four factors"),
                                       alpha_field(&alpha, "alpha"), rank_pattern_field(&ranks),
                                       alpha_pattern_field(&alphas)});
        return fields;
    }
};

class Loha : public Adapter {
  public:
    Loha(const LohaOptions& options, const MethodContext& context)
        : dropout_(options.dropout), factors_(context.model) {
        const auto ranks = site_numbers(context, "rank-pattern", options.ranks, options.rank);
        const auto alphas = site_numbers(context, "alpha-pattern", options.alphas, options.alpha);
        for (const nn::Site* site : context.sites) {
            const int64_t r = ranks[*site], in = site->linear.in(), out = site->linear.out();
            auto add = [&](const char* name, at::IntArrayRef shape) {
                const auto random = context.random.stream(site->name()).stream(name);
                return context.parameters.add(parameter_name(*site, name),
                                              std::string_view(name) == "hada_w2_b"
                                                  ? at::zeros(shape)
                                                  : kaiming_uniform(shape, random));
            };
            factors_[*site] = {add("hada_w1_a", {out, r}), add("hada_w1_b", {r, in}),
                               add("hada_w2_a", {out, r}), add("hada_w2_b", {r, in}),
                               alphas[*site] / static_cast<double>(r)};
        }
    }

    nn::SiteForms forms(const nn::Site& site, const nn::Pass& pass) override {
        const auto& [w1_a, w1_b, w2_a, w2_b, scale] = factors_[site];
        return dropout_(low_rank((w1_b.unsqueeze(1) * w2_b).flatten(0, 1),
                                 (w1_a.unsqueeze(2) * w2_a.unsqueeze(1)).flatten(1), scale, 0),
                        site, pass);
    }

  private:
    struct Factors {
        Tensor w1_a, w1_b, w2_a, w2_b;
        double scale = 0;
    };
    const DeltaDropout dropout_;
    BySite<Factors> factors_;
};

// How a new adapter would start, and what is about convolutions.
bool ignores(const std::string& key, const nlohmann::json&) {
    return key == "init_weights" || key == "use_effective_conv2d";
}

}  // namespace

Method loha() {
    return {"loha",
            "LOHA",
            "elementwise products of two low-rank additions",
            1e-2,
            true,
            make_options<LohaOptions>,
            make_adapter<Loha, LohaOptions>,
            ignores};
}

}  // namespace ether::methods
