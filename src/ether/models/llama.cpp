#include "ether/models/llama.h"

#include <ATen/Functions.h>

#include <cmath>
#include <numbers>

#include "ether/core/error.h"
#include "ether/core/utf8.h"
#include "ether/models/common.h"
#include "ether/nn/weights.h"
#include "ether/ops/attention/attention.h"
#include "ether/ops/dispatch.h"
#include "ether/ops/elementwise/elementwise.h"
#include "ether/ops/norm/rms_norm.h"
#include "ether/ops/rotary/rotary.h"
#include "ether/ops/swiglu/swiglu.h"

namespace ether::models {
namespace {

using at::Tensor;
using nn::BlockPoints;
using nn::Pass;
using nn::Projections;
using nn::Weights;
using ops::Rows;

// cos and sin of position times frequency, for positions 0..n-1: (n, head_dim / 2) each. Made anew for every
// pass, which costs next to nothing, so that passes may run side by side.
struct RotaryTables {
    Tensor cos, sin;

    // Angles are rounded to float32 as transformers' are.
    RotaryTables(int64_t positions, const Tensor& frequencies, at::ScalarType dtype) {
        const auto angles = at::outer(at::arange(positions, frequencies.options()), frequencies);
        cos = angles.cos().to(dtype);
        sin = angles.sin().to(dtype);
    }
};

class Layer {
  public:
    Layer(Weights& weights, const LlamaConfig& config, int64_t index) : config_(config), index_(index) {
        const std::string at = fmt::format("model.layers.{}.", index), attention = at + "self_attn.",
                          mlp = at + "mlp.";
        const int64_t d = config.hidden_size, wide = config.intermediate_size;
        const int64_t q = config.heads * config.head_dim, kv = config.kv_heads * config.head_dim;
        weights.load(&attention_norm_, at + "input_layernorm.weight", {d});
        q_ = weights.site(attention + "q_proj", q, d, config.qkv_bias, index);
        k_ = weights.site(attention + "k_proj", kv, d, config.qkv_bias, index);
        v_ = weights.site(attention + "v_proj", kv, d, config.qkv_bias, index);
        if (config.head_norms) {
            weights.load(&q_norm_, attention + "q_norm.weight", {config.head_dim});
            weights.load(&k_norm_, attention + "k_norm.weight", {config.head_dim});
        }
        o_ = weights.site(attention + "o_proj", d, q, config.output_bias, index);
        weights.load(&mlp_norm_, at + "post_attention_layernorm.weight", {d});
        gate_ = weights.site(mlp + "gate_proj", wide, d, config.mlp_bias, index);
        up_ = weights.site(mlp + "up_proj", wide, d, config.mlp_bias, index);
        down_ = weights.site(mlp + "down_proj", d, wide, config.mlp_bias, index);
    }

    Tensor operator()(const Tensor& x, const RotaryTables& tables, const BlockPoints& points,
                      const Pass& pass) const {
        const auto context = attention(x, tables, points, pass);
        Rows before_o, rows, last;
        const Projections o(before_o, before_o.input(context), {o_}, pass);
        const auto attended =
            ops::add(rows, rows.input(x), BlockPoints::at(points.attn_out, rows, o.finish(0, rows), pass));
        const auto input = BlockPoints::at(points.mlp_in, rows, norm(rows, attended, mlp_norm_), pass);
        Rows::Value residual, result;
        if (points.mlp) {
            const auto tensors = rows.run({attended, input});
            residual = last.input(tensors[0]);
            result = last.input(points.mlp(
                tensors[1],
                [&](const Tensor& h) {
                    Rows from, to;
                    const auto down = mlp({from, from.input(h), {gate_, up_}, pass}, pass);
                    return to.run(down.finish(0, to));
                },
                pass));
        } else {
            const Projections gate_up(rows, input, {gate_, up_}, pass, {attended});
            residual = last.input(gate_up.other(0));
            result = mlp(gate_up, pass).finish(0, last);
        }
        result = BlockPoints::at(points.mlp_out, last, result, pass);
        if (points.mlp_end) {
            const auto tensors = last.run({residual, result});
            auto finish = [&](const Tensor& h) { return tensors[0] + h; };
            residual = last.input(tensors[0]);
            result = last.input(points.mlp_end(tensors[1], finish, pass));
        }
        return last.run(ops::add(last, residual, result));
    }

  private:
    Rows::Value norm(Rows& rows, Rows::Value x, const Tensor& weight) const {
        return ops::rms_norm(rows, x, weight, config_.rms_norm_eps);
    }

    // What o_proj reads.
    Tensor attention(const Tensor& x, const RotaryTables& tables, const BlockPoints& points,
                     const Pass& pass) const {
        Rows rows, heads;
        const auto input =
            BlockPoints::at(points.attn_in, rows, norm(rows, rows.input(x), attention_norm_), pass);
        const Projections qkv(rows, input, {q_, k_, v_}, pass,
                              points.extra_kv ? std::vector{input} : std::vector<Rows::Value>{});
        const auto positions = points.positions_of(pass.batch);
        auto rotated = [&](size_t i, const Tensor& head_norm) {
            auto h = qkv.finish(i, heads);
            if (head_norm.defined()) h = norm(heads, h, head_norm);
            return ops::rotary(heads, h, positions, tables.cos, tables.sin);
        };
        const auto tensors = heads.run({rotated(0, q_norm_), rotated(1, k_norm_), qkv.finish(2, heads)});
        ops::AttentionOptions options{.heads = config_.heads, .kv_heads = config_.kv_heads};
        options.scale = 1 / std::sqrt(static_cast<double>(config_.head_dim));
        options.causal = true;
        options.window = config_.windows[static_cast<size_t>(index_)];
        options.dropout = pass.training ? config_.attention_dropout : 0;
        if (options.dropout > 0) options.random = pass.stream(index_, "attention probabilities");
        options.dropout_row = pass.first_token;
        return attend(tensors[0], tensors[1], tensors[2], points.extra_kv ? qkv.other(0) : Tensor(), points,
                      pass, options);
    }

    // The sublayer from gate and up to down's product.
    Projections mlp(const Projections& gate_up, const Pass& pass) const {
        Rows rows;
        const auto gate = gate_up.finish(0, rows), up = gate_up.finish(1, rows);
        return {rows, ops::swiglu(rows, gate, up), {down_}, pass};
    }

    const LlamaConfig& config_;
    int64_t index_;
    Tensor attention_norm_, mlp_norm_, q_norm_, k_norm_;
    nn::Site *q_, *k_, *v_, *o_, *gate_, *up_, *down_;
};

class Llama : public nn::Model {
  public:
    Llama(const io::Checkpoint& checkpoint, const LoadOptions& options)
        : config_(LlamaConfig::from(checkpoint.config(), options.dropout)) {
        shape_ = {.architecture = config_.model_type,
                  .prefix = "model.",
                  .head = options.head,
                  .hidden_size = config_.hidden_size,
                  .layers = config_.layers,
                  .heads = config_.heads,
                  .kv_heads = config_.kv_heads,
                  .head_dim = config_.head_dim,
                  .intermediate_size = config_.intermediate_size,
                  .vocab_size = config_.vocab_size,
                  .max_positions = config_.max_positions,
                  .classes = head_classes(checkpoint, options),
                  .causal = true};
        dtype_ = options.dtype;
        device_ = options.device;
        Weights weights(*this, checkpoint, "model.", options.seed);
        embeddings_.name = "model.embed_tokens.weight";
        weights.load(&embeddings_.table, embeddings_.name, {config_.vocab_size, config_.hidden_size});
        layers_.reserve(static_cast<size_t>(config_.layers));  // slots point into the layers
        for (int64_t i = 0; i < config_.layers; ++i) layers_.emplace_back(weights, config_, i);
        points_.resize(static_cast<size_t>(config_.layers));
        weights.load(&norm_, "model.norm.weight", {config_.hidden_size});
        frequencies_ = at::tensor(at::ArrayRef<float>(config_.frequencies)).to(device_);
        if (options.head == nn::Head::sequence_classification)
            output_site_ = weights.head("score", shape_.classes, config_.hidden_size, false,
                                        config_.initializer_range, options.new_head);
        else if (config_.tied_embeddings && !weights.differs("lm_head.weight", embeddings_.name))
            output_site_ = weights.tied_head("lm_head", embeddings_.name);
        else
            output_site_ = weights.site("lm_head", config_.vocab_size, config_.hidden_size, false, -1, true);
    }

    Tensor hidden(const Pass& pass) const override {
        const int64_t positions = pass.batch.max_length + points_.front().positions_taken;
        const RotaryTables tables(positions, frequencies_, ops::accumulate_dtype(dtype_));
        auto x = embeddings_(pass.batch.token_ids);
        for (size_t i = 0; i < layers_.size(); ++i)
            x = through(i, x, pass, [this, i, tables](const Tensor& h, const Pass& own) {
                return layers_[i](h, tables, points_[i], own);
            });
        return ops::rms_norm(x, norm_, config_.rms_norm_eps);
    }

    // A classifier reads the last token of each sequence.
    Tensor logits(const Pass& pass) const override {
        const auto states = hidden(pass);
        if (shape_.head == nn::Head::causal_lm) return (*output_site_)(states, pass);
        const auto& offsets = pass.batch.cu_seqlens;
        const auto last = offsets.narrow(0, 1, offsets.size(0) - 1) - 1;
        return (*output_site_)(states.index_select(0, last.to(at::kLong)),
                               one_token_per_sequence(pass, last));
    }

  private:
    const LlamaConfig config_;
    Tensor norm_, frequencies_;
    std::vector<Layer> layers_;
};

// rope_scaling (rope_parameters since transformers 5), after transformers' modeling_rope_utils.py.
std::vector<float> rotary_frequencies(const io::JsonObject& config, int64_t head_dim) {
    const char* key = config.has("rope_parameters") ? "rope_parameters" : "rope_scaling";
    const auto scaling = config.has(key) ? std::optional(config.object(key)) : std::nullopt;
    auto text = [&](const char* name) {
        return scaling ? scaling->get_or<std::string>(name, "") : std::string();
    };
    const bool own_theta = scaling && scaling->has("rope_theta");
    const double theta = number_within(own_theta ? *scaling : config, "rope_theta", 1, 1e12, 10000.0);
    std::string kind = text("rope_type").empty() ? text("type") : text("rope_type");
    if (kind.empty()) kind = "default";
    std::vector<float> frequencies;
    for (int64_t j = 0; j < head_dim; j += 2)
        frequencies.push_back(static_cast<float>(
            1.0 / std::pow(theta, static_cast<double>(j) / static_cast<double>(head_dim))));
    if (kind == "default") return frequencies;
    if (kind != "linear" && kind != "llama3")
        fail(ErrorKind::model, "{}: rope scaling \"{}\" is not supported; known: default, linear, llama3",
             config.name(), kind);
    const double factor = number_within(*scaling, "factor", 1e-3, 1e6);
    if (kind == "linear") {
        for (auto& f : frequencies) f = static_cast<float>(f / factor);
        return frequencies;
    }
    // llama3: long wavelengths are stretched by `factor`, short ones kept, those between blended.
    const double low = number_within(*scaling, "low_freq_factor", 1e-3, 1e6),
                 high = number_within(*scaling, "high_freq_factor", 1e-3, 1e6);
    if (low >= high)
        fail(ErrorKind::model, "{}: low_freq_factor ({:g}) must be below high_freq_factor ({:g})",
             config.name(), low, high);
    const auto original = static_cast<double>(positive(*scaling, "original_max_position_embeddings"));
    for (auto& f : frequencies) {
        const double wavelength = 2 * std::numbers::pi / f;
        if (wavelength < original / high) continue;
        const double smooth = std::max(0.0, (original / wavelength - low) / (high - low));
        f = static_cast<float>((1 - smooth) * f / factor + smooth * f);
    }
    return frequencies;
}

// Which layers look through a window: Mistral all; Qwen2 and Qwen3 by layer_types or from max_window_layers
// on.
std::vector<int64_t> attention_windows(const io::JsonObject& config, const std::string& model_type,
                                       int64_t layers) {
    const auto types = config.get_or<std::vector<std::string>>("layer_types", {});
    if (!types.empty() && static_cast<int64_t>(types.size()) != layers)
        fail(ErrorKind::model, "{}: key \"layer_types\" has {} entries, expected one for each of {} layers",
             config.name(), types.size(), layers);
    for (const auto& type : types)
        if (type != "sliding_attention" && type != "full_attention")
            fail(ErrorKind::model,
                 "{}: key \"layer_types\" holds \"{}\", expected sliding_attention or full_attention",
                 config.name(), printable(type));
    std::vector<int64_t> windows(static_cast<size_t>(layers), 0);
    if (model_type == "llama") return windows;
    const auto window = config.get_or<int64_t>("sliding_window", 0);
    if (window < 0)
        fail(ErrorKind::model, "{}: key \"sliding_window\" is {}, expected at least 0", config.name(),
             window);
    if (window == 0) return windows;
    if (model_type != "mistral" && !config.get_or<bool>("use_sliding_window", false)) return windows;
    const auto first = model_type == "mistral" ? 0 : config.get_or<int64_t>("max_window_layers", 0);
    for (int64_t i = 0; i < layers; ++i) {
        const auto at = static_cast<size_t>(i);
        const bool slides = at < types.size() ? types[at] == "sliding_attention" : i >= first;
        if (slides) windows[at] = window;
    }
    return windows;
}

}  // namespace

LlamaConfig LlamaConfig::from(const io::JsonObject& config, std::optional<double> dropout) {
    LlamaConfig result;
    result.model_type = config.get<std::string>("model_type");
    result.vocab_size = positive(config, "vocab_size");
    result.hidden_size = positive(config, "hidden_size");
    result.intermediate_size = positive(config, "intermediate_size");
    result.layers = positive(config, "num_hidden_layers", kMostLayers);
    result.heads = positive(config, "num_attention_heads");
    result.kv_heads = positive_or(config, "num_key_value_heads", result.heads);
    divides(config, "num_key_value_heads", result.kv_heads, "num_attention_heads", result.heads);
    if (!config.has("head_dim"))
        divides(config, "num_attention_heads", result.heads, "hidden_size", result.hidden_size);
    result.head_dim = positive_or(config, "head_dim", result.hidden_size / result.heads, kWidestHead);
    if (result.head_dim % 2 != 0)
        fail(ErrorKind::model, "{}: heads are {} wide, but rotary positions need an even width",
             config.name(), result.head_dim);
    result.max_positions = positive(config, "max_position_embeddings");
    result.rms_norm_eps = norm_epsilon(config, "rms_norm_eps", 1e-6);
    result.initializer_range = models::initializer_range(config);
    const double own_dropout = probability(config, "attention_dropout", 0);
    result.attention_dropout = dropout.value_or(own_dropout);
    const bool bias = config.get_or<bool>("attention_bias", false), qwen2 = result.model_type == "qwen2";
    result.qkv_bias = qwen2 || bias;
    result.output_bias = !qwen2 && bias;
    result.mlp_bias = config.get_or<bool>("mlp_bias", false);
    result.head_norms = result.model_type == "qwen3";
    result.tied_embeddings = config.get_or<bool>("tie_word_embeddings", false);
    if (const auto act = config.get_or<std::string>("hidden_act", "silu"); act != "silu")
        fail(ErrorKind::model, "{}: hidden_act \"{}\" is not supported here, only \"silu\"", config.name(),
             printable(act));
    result.windows = attention_windows(config, result.model_type, result.layers);
    result.frequencies = rotary_frequencies(config, result.head_dim);
    return result;
}

std::unique_ptr<nn::Model> make_llama(const io::Checkpoint& checkpoint, const LoadOptions& options) {
    return std::make_unique<Llama>(checkpoint, options);
}

}  // namespace ether::models
