// Bottleneck adapters: x + s (U act(D x + b) + c), with D (r, d) small and U (d, r) zero at the start,
// inserted into each block: after attention and after the MLP (houlsby: Houlsby et al., arXiv 1902.00751),
// after the MLP alone (pfeiffer: Pfeiffer et al., arXiv 2005.00247), both before the residual is added, or
// beside the MLP, whose input they then read (parallel: He et al., arXiv 2110.04366). Trained values: 2 d r +
// d + r for each. Not mergeable.
#include <ATen/Functions.h>

#include "ether/methods/bottleneck_module.h"
#include "ether/methods/methods.h"

namespace ether::methods {
namespace {

using at::Tensor;

struct BottleneckOptions : MethodOptions {
    int64_t size = 48;
    double scale = 1;
    std::string placement = "pfeiffer", activation = "relu";

    Fields fields() override {
        return {
            bottleneck_size_field(&size),
            {.name = "placement",
             .value = &placement,
             .help = "where in a block: pfeiffer (after the MLP), houlsby (after attention, too), parallel "
                     "(beside the MLP)",
             .choices = {"pfeiffer", "houlsby", "parallel"}},
            {.name = "activation",
             .value = &activation,
             .help = "between the two products",
             .choices = {"relu", "gelu", "silu"}},
            {.name = "scale",
             .value = &scale,
             .help = "s, factor of what is added",
             .low = -1e6,
             .high = 1e6},
        };
    }
};

class Bottleneck : public Adapter {
  public:
    Bottleneck(const BottleneckOptions& options, const MethodContext& context) : options_(options) {
        for (int64_t layer = 0; layer < context.model.shape().layers; ++layer) {
            if (options.placement == "houlsby") attention_.push_back(module(layer, "attention", context));
            mlp_.push_back(module(layer, "mlp", context));
        }
    }

    nn::BlockPoints points(int64_t layer, const nn::Pass&) override {
        const auto at = static_cast<size_t>(layer);
        nn::BlockPoints points;
        auto after = [this](const BottleneckModule& module) {
            return [this, &module](const Tensor& x, const nn::Pass&) { return x + branch(module, x); };
        };
        if (options_.placement == "parallel")
            points.mlp = [this, at](const Tensor& x, const nn::BlockPoints::Sublayer& mlp, const nn::Pass&) {
                return mlp(x) + branch(mlp_[at], x);
            };
        else
            points.mlp_out = after(mlp_[at]);
        if (options_.placement == "houlsby") points.attn_out = after(attention_[at]);
        return points;
    }

  private:
    BottleneckModule module(int64_t layer, const char* place, const MethodContext& context) const {
        const auto start = at::zeros({context.model.shape().hidden_size, options_.size});
        return BottleneckModule::add(fmt::format("adapters.{}.{}", layer, place), options_.size, start,
                                     context);
    }

    Tensor branch(const BottleneckModule& module, const Tensor& x) const {
        return (module(x, options_.activation) * options_.scale).to(x.scalar_type());
    }

    const BottleneckOptions options_;
    std::vector<BottleneckModule> attention_, mlp_;  // by layer
};

}  // namespace

Method bottleneck() {
    return {"bottleneck",
            "BOTTLENECK",
            "small networks inserted after attention and MLP",
            3e-3,
            false,
            make_options<BottleneckOptions>,
            make_adapter<Bottleneck, BottleneckOptions>,
            ignores_nothing};
}

}  // namespace ether::methods
