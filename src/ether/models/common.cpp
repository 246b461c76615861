#include "ether/models/common.h"

#include <ATen/Functions.h>

#include <array>
#include <numeric>

#include "ether/core/error.h"
#include "ether/core/utf8.h"
#include "ether/ops/gelu/gelu.h"

namespace ether::models {
namespace {

using at::Tensor;

struct Activation {
    const char* name;
    Tensor (*apply)(const Tensor&);  // null: the graph's own
};

constexpr std::array kActivations = {
    Activation{"gelu", nullptr},
    Activation{"gelu_new", [](const Tensor& x) { return at::gelu(x, "tanh"); }},
    Activation{"gelu_pytorch_tanh", [](const Tensor& x) { return at::gelu(x, "tanh"); }},
    Activation{"relu", [](const Tensor& x) { return at::relu(x); }},
    Activation{"silu", [](const Tensor& x) { return at::silu(x); }},
    Activation{"tanh", [](const Tensor& x) { return at::tanh(x); }},
};

// Puts `extra` ((P, d) for all sequences or (B, P, d)) before each sequence of x (T, d).
Tensor with_extra(const Tensor& extra, const Tensor& x, const Tensor& offsets) {
    const int64_t sequences = offsets.size(0) - 1;
    const auto host = offsets.cpu();
    const int32_t* begin = host.const_data_ptr<int32_t>();
    std::vector<Tensor> parts;
    for (int64_t s = 0; s < sequences; ++s) {
        parts.push_back((extra.dim() == 3 ? extra[s] : extra).to(x.scalar_type()));
        parts.push_back(x.narrow(0, begin[s], begin[s + 1] - begin[s]));
    }
    return at::cat(parts);
}

}  // namespace

int64_t positive_or(const io::JsonObject& config, const char* key, int64_t fallback, int64_t most) {
    return config.has(key) ? positive(config, key, most) : fallback;
}

int64_t positive(const io::JsonObject& config, const char* key, int64_t most) {
    const auto value = config.get<int64_t>(key);
    if (value <= 0 || value > most)
        fail(ErrorKind::model, "{}: key \"{}\" is {}, expected 1 to {}", config.name(), key, value, most);
    return value;
}

double number_within(const io::JsonObject& config, const char* key, double least, double most,
                     std::optional<double> fallback) {
    const auto value = fallback ? config.get_or<double>(key, *fallback) : config.get<double>(key);
    if (!(value >= least && value <= most))
        fail(ErrorKind::model, "{}: key \"{}\" is {:g}, expected {:g} to {:g}", config.name(), key, value,
             least, most);
    return value;
}

double norm_epsilon(const io::JsonObject& config, const char* key, double fallback) {
    return number_within(config, key, 1e-30, 1, fallback);
}

double initializer_range(const io::JsonObject& config) {
    return number_within(config, "initializer_range", 0, 10, 0.02);
}

double probability(const io::JsonObject& config, const char* key, double fallback) {
    const auto value = config.get_or<double>(key, fallback);
    if (!(value >= 0 && value < 1))
        fail(ErrorKind::model, "{}: key \"{}\" is {}, expected a probability in [0, 1)", config.name(), key,
             value);
    return value;
}

void divides(const io::JsonObject& config, const char* divisor_key, int64_t divisor, const char* value_key,
             int64_t value) {
    if (value % divisor != 0)
        fail(ErrorKind::model, "{}: {} ({}) does not divide {} ({})", config.name(), divisor_key, divisor,
             value_key, value);
}

std::string checked_activation(const io::JsonObject& config, const char* key, const char* fallback) {
    const auto name = config.get_or<std::string>(key, fallback);
    std::string known;
    for (const auto& entry : kActivations) {
        if (name == entry.name) return name;
        known += fmt::format("{}{}", known.empty() ? "" : ", ", entry.name);
    }
    fail(ErrorKind::model, "{}: key \"{}\": activation \"{}\" is not supported; known: {}", config.name(),
         key, printable(name), known);
}

ops::Rows::Value activation(const std::string& name, ops::Rows& rows, ops::Rows::Value x) {
    for (const auto& entry : kActivations)
        if (name == entry.name)
            return entry.apply ? rows.input(entry.apply(rows.run(x))) : ops::gelu(rows, x);
    ETHER_ASSERT(false);
}

Tensor attend(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& x,
              const nn::BlockPoints& points, const nn::Pass& pass, const ops::AttentionOptions& options) {
    const auto& offsets = pass.batch.cu_seqlens;
    auto bounded = options;
    bounded.longest_query = bounded.longest_key = pass.batch.max_length;
    if (!points.extra_kv) return ops::attention(q, k, v, offsets, offsets, bounded);
    const auto extra = points.extra_kv(x, pass);
    const int64_t prefix = extra.keys.size(-2);
    bounded.longest_key += prefix;
    const auto key_offsets = offsets + prefix * at::arange(offsets.size(0), offsets.options());
    return ops::attention(q, with_extra(extra.keys, k, offsets), with_extra(extra.values, v, offsets),
                          offsets, key_offsets.to(at::kInt), bounded);
}

nn::Pass one_token_per_sequence(const nn::Pass& pass, const Tensor& tokens) {
    nn::Pass result = pass;
    result.first_token = pass.first_sequence;
    result.offsets = at::arange(tokens.size(0) + 1, tokens.options().dtype(at::kInt));
    if (pass.adapter_rows.defined()) result.adapter_rows = pass.adapter_rows.index_select(0, tokens);
    return result;
}

}  // namespace ether::models
