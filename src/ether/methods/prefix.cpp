// Prefix tuning (Li and Liang, arXiv 2101.00190): l trained keys and values stand before each layer's own,
// for every sequence alike. They take no position, unlike PEFT's, behind which a text's positions begin at l.
// With a projection they come from l vectors through a network, tanh(E A^T + a) B^T + b, as in the paper's
// section 4.3, in training alone: files hold what comes out. Trained values: 2 l L d_kv, and with a
// projection of width m: l d + m (d + 1) + 2 L d_kv (m + 1). Not mergeable.
#include <ATen/Functions.h>

#include <nlohmann/json.hpp>

#include "ether/methods/methods.h"

namespace ether::methods {
namespace {

using at::Tensor;

struct PrefixOptions : MethodOptions {
    int64_t length = 10, projection = 0;

    Fields fields() override {
        return {
            {.name = "prefix-length",
             .value = &length,
             .help = "l, vectors before each layer's own",
             .low = 1,
             .high = 1 << 16},
            {.name = "projection",
             .value = &projection,
             .help =
                 "m, inner width of a network that makes them in training; 0: they are trained themselves",
             .low = 0,
             .high = 1 << 20},
        };
    }
};

class Prefix : public Adapter {
  public:
    Prefix(const PrefixOptions& options, const MethodContext& context)
        : length_(options.length),
          width_(context.model.shape().kv_heads * context.model.shape().head_dim),
          dtype_(context.model.dtype()) {
        const auto& shape = context.model.shape();
        auto add = [&](const std::string& name, const Tensor& value, bool saved = true) {
            return context.parameters.add(name, value, nn::ParameterGroup::adapter, true, saved);
        };
        if (options.projection == 0 || context.loading) {
            vectors_ = add("prefix", normal({shape.layers, 2, length_, width_}, 0.02, context.random));
            return;
        }
        const int64_t d = shape.hidden_size, m = options.projection, out = 2 * shape.layers * width_;
        network_ = {
            add("prefix.embedding", normal({length_, d}, 1, context.random.stream("embedding")), false),
            add("prefix.projection.0.weight", kaiming_uniform({m, d}, context.random.stream("0")), false),
            add("prefix.projection.0.bias", at::zeros({m}), false),
            add("prefix.projection.1.weight", kaiming_uniform({out, m}, context.random.stream("1")), false),
            add("prefix.projection.1.bias", at::zeros({out}), false)};
    }

    nn::BlockPoints points(int64_t layer, const nn::Pass&) override {
        if (layer == 0) current_ = vectors().to(dtype_);
        nn::BlockPoints points;
        points.extra_kv = [own = current_[layer]](const nn::Pass&) {
            return nn::ExtraKeyValues{own[0], own[1]};
        };
        return points;
    }

    // The file's adapter has no network.
    void to_config(nlohmann::json& config) const override { config["projection"] = 0; }

    void to_tensors(io::NamedTensors& tensors) const override {
        if (!vectors_.defined()) tensors.emplace_back("prefix", vectors().detach());
    }

  private:
    struct Network {
        Tensor embedding, weight, bias, out_weight, out_bias;
    };

    // (layers, keys and values, l, d_kv)
    Tensor vectors() const {
        if (vectors_.defined()) return vectors_;
        const auto inner = at::addmm(network_.bias, network_.embedding, network_.weight.t()).tanh();
        return at::addmm(network_.out_bias, inner, network_.out_weight.t())
            .view({length_, -1, 2, width_})
            .permute({1, 2, 0, 3})
            .contiguous();
    }

    int64_t length_, width_;
    at::ScalarType dtype_;  // of activations
    Tensor vectors_;        // trained, or
    Network network_;       // what makes them
    Tensor current_;        // of the pass whose points were asked for last
};

}  // namespace

Method prefix() {
    return {"prefix",
            "PREFIX",
            "trained keys and values before each layer's own",
            1e-2,
            false,
            make_options<PrefixOptions>,
            make_adapter<Prefix, PrefixOptions>,
            ignores_nothing};
}

}  // namespace ether::methods
