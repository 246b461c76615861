// Prefix tuning (Li and Liang, arXiv 2101.00190): l trained keys and values stand before each layer's own,
// for every sequence alike. They take the first l positions, as in PEFT: a text's begin at l. With a
// projection they come from l vectors through a network, tanh(E A^T + a) B^T + b, as in the paper's
// section 4.3, in training alone: files hold what comes out. Trained values: 2 l L d_kv, and with a
// projection of width m: l d + m (d + 1) + 2 L d_kv (m + 1). Not mergeable. Files as PEFT's prefix tuning.
#include <nlohmann/json.hpp>
#include <optional>

#include "ether/core/error.h"
#include "ether/io/adapter_folder.h"
#include "ether/io/json_reader.h"
#include "ether/methods/adapter_config.h"
#include "ether/methods/methods.h"
#include "ether/methods/prefix_vectors.h"

namespace ether::methods {
namespace {

constexpr const char *kLayers = "num_layers", *kHeads = "num_attention_heads", *kWidth = "token_dim";

struct PrefixOptions : MethodOptions {
    int64_t length = 10, projection = 0;
    // What a file says about the model it was made for, if anything.
    std::optional<int64_t> layers, heads, width;

    Fields fields() override {
        auto length_field = prefix_length_field(&length);
        length_field.key = "num_virtual_tokens";
        return {length_field, projection_field(&projection)};
    }
    void from_config(nlohmann::json& config) override {
        const io::JsonObject values(config, io::kAdapterConfigFile);
        for (const auto& [key, value] : {std::pair(kLayers, &layers), {kHeads, &heads}, {kWidth, &width}}) {
            if (values.has(key)) *value = values.get<int64_t>(key);
            config.erase(key);
        }
    }
    // The file's adapter has no network.
    void to_config(nlohmann::json& config) const override {
        config.erase("projection");
        config["prefix_projection"] = false;
    }
};

class Prefix : public Adapter {
  public:
    Prefix(const PrefixOptions& options, const MethodContext& context)
        : shape_(context.model.shape()),
          dtype_(context.model.dtype()),
          length_(options.length),
          vectors_(kPromptEmbeddings, options.length, options.projection, context) {
        if (context.loading) {
            check(kLayers, options.layers, shape_.layers);
            check(kHeads, options.heads, shape_.kv_heads);
            check(kWidth, options.width, shape_.kv_heads * shape_.head_dim);
        }
        context.model.take_positions(options.length);
    }

    nn::BlockPoints points(int64_t layer, const nn::Pass&) override {
        if (layer == 0) current_ = vectors_.value().to(dtype_);
        nn::BlockPoints points;
        points.extra_kv = [own = current_[layer]](const at::Tensor&, const nn::Pass&) {
            return nn::ExtraKeyValues{own[0], own[1]};
        };
        points.positions_taken = length_;
        return points;
    }

    void to_config(nlohmann::json& config) const override {
        config[kLayers] = shape_.layers;
        config[kHeads] = shape_.kv_heads;
        config[kWidth] = shape_.kv_heads * shape_.head_dim;
        config["num_transformer_submodules"] = 1;
    }

    void to_tensors(io::NamedTensors& tensors) const override { vectors_.to_tensors(tensors); }

  private:
    static void check(const char* key, std::optional<int64_t> found, int64_t own) {
        if (found && *found != own)
            fail(ErrorKind::adapter, "{}: key \"{}\" is {}, but this model has {}", io::kAdapterConfigFile,
                 key, *found, own);
    }

    nn::ModelShape shape_;
    at::ScalarType dtype_;  // of activations
    int64_t length_;
    PrefixVectors vectors_;
    at::Tensor current_;  // of the pass whose points were asked for last
};

// How it was trained.
bool ignores(const std::string& key, const nlohmann::json& value) {
    if (key == "num_transformer_submodules") return value == 1;  // 2: an encoder and a decoder
    if (key == "prefix_projection") return value.is_boolean();
    return key == "encoder_hidden_size" || key == "init_weights";
}

}  // namespace

Method prefix() {
    return {"prefix",
            "PREFIX_TUNING",
            "trained keys and values before each layer's own",
            5e-2,
            false,
            make_options<PrefixOptions>,
            make_adapter<Prefix, PrefixOptions>,
            ignores,
            "",
            /*wraps_layers=*/false};
}

}  // namespace ether::methods
