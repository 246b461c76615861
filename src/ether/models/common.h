// What model files share: checked reading of config.json, activations by name, attention with a block's extra
// keys, and the pass of a head that sees one token of each sequence.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>

#include "ether/io/json_reader.h"
#include "ether/nn/model.h"
#include "ether/ops/attention/attention.h"

namespace ether::models {

// Bounds of what is allocated before a weight's shape confirms it; no model comes near.
inline constexpr int64_t kMostLayers = 1 << 16, kWidestHead = 1 << 16;

// A required integer from 1 to `most`.
int64_t positive(const io::JsonObject& config, const char* key, int64_t most = int64_t{1} << 31);
int64_t positive_or(const io::JsonObject& config, const char* key, int64_t fallback,
                    int64_t most = int64_t{1} << 31);
// A number from `least` to `most`, required unless there is a fallback.
double number_within(const io::JsonObject& config, const char* key, double least, double most,
                     std::optional<double> fallback = {});
// What a norm adds to a variance: from 1e-30, which float32 holds, to 1.
double norm_epsilon(const io::JsonObject& config, const char* key, double fallback);
// Standard deviation of new weights, at most 10.
double initializer_range(const io::JsonObject& config);
// A number in [0, 1).
double probability(const io::JsonObject& config, const char* key, double fallback);
// An error that names both keys unless divisor divides value.
void divides(const io::JsonObject& config, const char* divisor_key, int64_t divisor, const char* value_key,
             int64_t value);

// transformers' ACT2FN: gelu, gelu_new, gelu_pytorch_tanh, relu, silu, tanh.
std::string checked_activation(const io::JsonObject& config, const char* key, const char* fallback);
ops::Rows::Value activation(const std::string& name, ops::Rows& rows, ops::Rows::Value x);

// Attention over the batch's sequences, with the block's extra keys and values in front of each one's own; x:
// what the sublayer reads, if there are any.
at::Tensor attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& x,
                  const nn::BlockPoints& points, const nn::Pass& pass, const ops::AttentionOptions& options);

// The pass for a module that reads one token of each sequence: tokens (B) are their indices in the batch.
nn::Pass one_token_per_sequence(const nn::Pass& pass, const at::Tensor& tokens);

}  // namespace ether::models
