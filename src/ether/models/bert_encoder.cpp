#include "ether/models/bert_encoder.h"

#include <ATen/Functions.h>

#include <cmath>

#include "ether/core/error.h"
#include "ether/core/utf8.h"
#include "ether/models/common.h"
#include "ether/nn/weights.h"
#include "ether/ops/attention/attention.h"
#include "ether/ops/dropout/dropout.h"
#include "ether/ops/elementwise/elementwise.h"
#include "ether/ops/norm/layer_norm.h"

namespace ether::models {

using at::Tensor;
using nn::BlockPoints;
using nn::Pass;
using nn::Projections;
using nn::Weights;
using ops::Rows;

void LayerNorm::load(Weights& weights, const std::string& name, int64_t width, double epsilon) {
    weights.load(&weight, name + ".weight", {width});
    weights.load(&bias, name + ".bias", {width});
    eps = epsilon;
}

Rows::Value LayerNorm::operator()(Rows& rows, Rows::Value x) const {
    return ops::layer_norm(rows, x, weight, bias, eps);
}

class BertLayer {
  public:
    BertLayer(Weights& weights, const BertConfig& config, const std::string& prefix, int64_t index)
        : config_(config), index_(index) {
        const std::string at = fmt::format("{}encoder.layer.{}.", prefix, index);
        const int64_t d = config.hidden_size, wide = config.intermediate_size;
        query_ = weights.site(at + "attention.self.query", d, d, true, index);
        key_ = weights.site(at + "attention.self.key", d, d, true, index);
        value_ = weights.site(at + "attention.self.value", d, d, true, index);
        attention_output_ = weights.site(at + "attention.output.dense", d, d, true, index);
        attention_norm_.load(weights, at + "attention.output.LayerNorm", d, config.layer_norm_eps);
        intermediate_ = weights.site(at + "intermediate.dense", wide, d, true, index);
        output_ = weights.site(at + "output.dense", d, wide, true, index);
        output_norm_.load(weights, at + "output.LayerNorm", d, config.layer_norm_eps);
    }

    Tensor operator()(const Tensor& x, const BlockPoints& points, const Pass& pass) const {
        Rows before_attention, before_output, rows, last;
        const auto stream = before_attention.input(x);
        const auto context = attention(
            before_attention, BlockPoints::at(points.attn_in, before_attention, stream, pass), points, pass);
        const Projections output(before_output, before_output.input(context), {attention_output_}, pass);
        const auto attention_result = drop(rows, output.finish(0, rows), "attention", pass);
        const auto attended = attention_norm_(
            rows,
            ops::add(rows, rows.input(x), BlockPoints::at(points.attn_out, rows, attention_result, pass)));
        const auto input = BlockPoints::at(points.mlp_in, rows, attended, pass);
        if (points.mlp) {
            const auto tensors = rows.run({attended, input});
            auto mlp_of = [&](const Tensor& h) {
                Rows from, to;
                const auto end = mlp({from, from.input(h), {intermediate_}, pass}, pass);
                return to.run(drop(to, end.finish(0, to), "mlp", pass));
            };
            return last.run(block_end(last, last.input(tensors[0]),
                                      last.input(points.mlp(tensors[1], mlp_of, pass)), points, pass));
        }
        const Projections intermediate(rows, input, {intermediate_}, pass, {attended});
        const auto result = drop(last, mlp(intermediate, pass).finish(0, last), "mlp", pass);
        return last.run(block_end(last, last.input(intermediate.other(0)), result, points, pass));
    }

  private:
    // What the sublayer's output layer reads.
    Tensor attention(Rows& rows, Rows::Value input, const BlockPoints& points, const Pass& pass) const {
        const Projections qkv(rows, input, {query_, key_, value_}, pass,
                              points.extra_kv ? std::vector{input} : std::vector<Rows::Value>{});
        Rows heads;
        const auto tensors = heads.run({qkv.finish(0, heads), qkv.finish(1, heads), qkv.finish(2, heads)});
        ops::AttentionOptions options{.heads = config_.heads, .kv_heads = config_.heads};
        options.scale = 1 / std::sqrt(static_cast<double>(config_.hidden_size / config_.heads));
        options.dropout = pass.training ? config_.attention_dropout : 0;
        if (options.dropout > 0) options.random = pass.stream(index_, "attention probabilities");
        options.dropout_row = pass.first_token;
        return attend(tensors[0], tensors[1], tensors[2], points.extra_kv ? qkv.other(0) : Tensor(), points,
                      pass, options);
    }

    // The sublayer from its first layer to the product of its second.
    Projections mlp(const Projections& intermediate, const Pass& pass) const {
        Rows rows;
        const auto h = activation(config_.activation, rows, intermediate.finish(0, rows));
        return {rows, h, {output_}, pass};
    }

    // From the MLP's dropped result and what it is added to.
    Rows::Value block_end(Rows& rows, Rows::Value x, Rows::Value result, const BlockPoints& points,
                          const Pass& pass) const {
        result = BlockPoints::at(points.mlp_out, rows, result, pass);
        if (points.mlp_end) {
            const auto tensors = rows.run({x, result});
            auto finish = [&](const Tensor& h) {
                Rows own;
                return own.run(output_norm_(own, ops::add(own, own.input(tensors[0]), own.input(h))));
            };
            x = rows.input(tensors[0]);
            result = rows.input(points.mlp_end(tensors[1], finish, pass));
        }
        return output_norm_(rows, ops::add(rows, x, result));
    }

    Rows::Value drop(Rows& rows, Rows::Value x, std::string_view place, const Pass& pass) const {
        if (!pass.training || config_.hidden_dropout == 0) return x;
        return ops::dropout(rows, x, config_.hidden_dropout, pass.stream(index_, place), pass.first_token);
    }

    const BertConfig& config_;
    int64_t index_;
    nn::Site *query_, *key_, *value_, *attention_output_, *intermediate_, *output_;
    LayerNorm attention_norm_, output_norm_;
};

BertEncoder::BertEncoder(const io::Checkpoint& checkpoint, const LoadOptions& options,
                         const std::string& architecture, int64_t first_position)
    : config_(BertConfig::from(checkpoint.config(), options.dropout)), first_position_(first_position) {
    if (options.head != nn::Head::sequence_classification)
        fail(ErrorKind::model, "{}: {} is an encoder and cannot generate text; use --task classify",
             checkpoint.path().string(), architecture);
    if (first_position >= config_.max_positions)
        fail(ErrorKind::model, "{}: max_position_embeddings is {}, but positions begin at {}",
             checkpoint.config().name(), config_.max_positions, first_position);
    const std::string prefix = architecture + ".";
    shape_ = {.architecture = architecture,
              .prefix = prefix,
              .head = options.head,
              .hidden_size = config_.hidden_size,
              .layers = config_.layers,
              .heads = config_.heads,
              .kv_heads = config_.heads,
              .head_dim = config_.hidden_size / config_.heads,
              .intermediate_size = config_.intermediate_size,
              .vocab_size = config_.vocab_size,
              .max_positions = config_.max_positions - first_position,
              .classes = head_classes(checkpoint, options),
              .token_types = config_.type_vocab_size,
              .causal = false};
    dtype_ = options.dtype;
    device_ = options.device;
    Weights weights(*this, checkpoint, prefix, options.seed);
    const int64_t d = config_.hidden_size;
    const std::string at = prefix + "embeddings.";
    embeddings_.name = at + "word_embeddings.weight";
    weights.load(&embeddings_.table, embeddings_.name, {config_.vocab_size, d});
    weights.load(&positions_, at + "position_embeddings.weight", {config_.max_positions, d});
    weights.load(&types_, at + "token_type_embeddings.weight", {config_.type_vocab_size, d});
    norm_.load(weights, at + "LayerNorm", d, config_.layer_norm_eps);
    for (int64_t i = 0; i < config_.layers; ++i)
        layers_.push_back(std::make_unique<BertLayer>(weights, config_, prefix, i));
    points_.resize(static_cast<size_t>(config_.layers));
}

BertEncoder::~BertEncoder() = default;

// Where positions begin behind the padding token's number (RoBERTa), such a token in a text has that row and
// is not counted, as in transformers' create_position_ids_from_input_ids.
Tensor BertEncoder::position_rows(const data::Batch& batch) const {
    const int64_t taken = points_.front().positions_taken;
    const auto rows = batch.positions + (first_position_ + taken);
    const int64_t padding = first_position_ - 1;
    if (padding < 0) return rows;
    const auto is_padding = batch.token_ids.eq(padding), skipped = is_padding.cumsum(0);
    const auto sequence = batch.positions.eq(0).cumsum(0) - 1,
               first = batch.cu_seqlens.index_select(0, sequence);
    const auto before = (skipped - is_padding.to(at::kLong)).index_select(0, first);
    return at::where(is_padding, padding, rows - (skipped - before));
}

Tensor BertEncoder::hidden(const Pass& pass) const {
    const auto& batch = pass.batch;
    auto x = embeddings_(batch.token_ids) + at::embedding(types_, batch.type_ids) +
             at::embedding(positions_, position_rows(batch));
    Rows rows;
    auto normed = norm_(rows, rows.input(x));
    if (pass.training && config_.hidden_dropout > 0)
        normed = ops::dropout(rows, normed, config_.hidden_dropout, pass.stream(-1, "embeddings"),
                              pass.first_token);
    return encode(rows.run(normed), pass);
}

Tensor BertEncoder::encode(Tensor x, const Pass& pass) const {
    for (size_t i = 0; i < layers_.size(); ++i)
        x = through(i, x, pass, [this, i](const Tensor& h, const Pass& own) {
            return (*layers_[i])(h, points_[i], own);
        });
    return x;
}

std::pair<Tensor, Pass> BertEncoder::first_tokens(const Pass& pass) const {
    const auto& offsets = pass.batch.cu_seqlens;
    const auto first = offsets.narrow(0, 0, offsets.size(0) - 1);
    return {hidden(pass).index_select(0, first.to(at::kLong)), one_token_per_sequence(pass, first)};
}

Tensor BertEncoder::drop(const Tensor& x, double p, const Pass& pass, std::string_view place) {
    return pass.training && p > 0 ? ops::dropout(x, p, pass.stream(-1, place), pass.first_token) : x;
}

BertConfig BertConfig::from(const io::JsonObject& config, std::optional<double> dropout) {
    if (const auto kind = config.get_or<std::string>("position_embedding_type", "absolute");
        kind != "absolute")
        fail(ErrorKind::model, "{}: position_embedding_type \"{}\" is not supported, only \"absolute\"",
             config.name(), printable(kind));
    for (const char* key : {"is_decoder", "add_cross_attention"})
        if (config.get_or<bool>(key, false))
            fail(ErrorKind::model, "{}: key \"{}\" is true, but only encoders are supported here",
                 config.name(), key);
    BertConfig result{
        .vocab_size = positive(config, "vocab_size"),
        .hidden_size = positive(config, "hidden_size"),
        .layers = positive(config, "num_hidden_layers", kMostLayers),
        .heads = positive(config, "num_attention_heads"),
        .intermediate_size = positive(config, "intermediate_size"),
        .max_positions = positive(config, "max_position_embeddings"),
        .type_vocab_size = positive_or(config, "type_vocab_size", 2),
        .layer_norm_eps = norm_epsilon(config, "layer_norm_eps", 1e-12),
        .hidden_dropout = probability(config, "hidden_dropout_prob", 0.1),
        .attention_dropout = probability(config, "attention_probs_dropout_prob", 0.1),
        .classifier_dropout = 0,
        .initializer_range = models::initializer_range(config),
        .activation = checked_activation(config, "hidden_act", "gelu"),
    };
    result.classifier_dropout = probability(config, "classifier_dropout", result.hidden_dropout);
    if (dropout) result.hidden_dropout = result.attention_dropout = result.classifier_dropout = *dropout;
    divides(config, "num_attention_heads", result.heads, "hidden_size", result.hidden_size);
    return result;
}

}  // namespace ether::models
