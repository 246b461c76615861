// Prefix tuning (Li and Liang, arXiv 2101.00190): l trained keys and values stand before each layer's own,
// for every sequence alike. They take no position, unlike PEFT's, behind which a text's positions begin at l.
// With a projection they come from l vectors through a network, tanh(E A^T + a) B^T + b, as in the paper's
// section 4.3, in training alone: files hold what comes out. Trained values: 2 l L d_kv, and with a
// projection of width m: l d + m (d + 1) + 2 L d_kv (m + 1). Not mergeable.
#include <nlohmann/json.hpp>

#include "ether/methods/methods.h"
#include "ether/methods/prefix_vectors.h"

namespace ether::methods {
namespace {

struct PrefixOptions : MethodOptions {
    int64_t length = 10, projection = 0;

    Fields fields() override { return {prefix_length_field(&length), projection_field(&projection)}; }
};

class Prefix : public Adapter {
  public:
    Prefix(const PrefixOptions& options, const MethodContext& context)
        : dtype_(context.model.dtype()), vectors_(options.length, options.projection, context) {}

    nn::BlockPoints points(int64_t layer, const nn::Pass&) override {
        if (layer == 0) current_ = vectors_.value().to(dtype_);
        nn::BlockPoints points;
        points.extra_kv = [own = current_[layer]](const at::Tensor&, const nn::Pass&) {
            return nn::ExtraKeyValues{own[0], own[1]};
        };
        return points;
    }

    // The file's adapter has no network.
    void to_config(nlohmann::json& config) const override { config["projection"] = 0; }
    void to_tensors(io::NamedTensors& tensors) const override { vectors_.to_tensors(tensors); }

  private:
    at::ScalarType dtype_;  // of activations
    PrefixVectors vectors_;
    at::Tensor current_;  // of the pass whose points were asked for last
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
