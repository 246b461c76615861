// The Llama family (Touvron et al., arXiv 2307.09288; Llama 3, Mistral, Qwen2, Qwen3) in one file, after
// transformers' models/{llama,mistral,qwen2,qwen3}/modeling_*.py: pre-norm decoder, rotary positions,
// grouped-query attention, SwiGLU.
#pragma once

#include "ether/models/registry.h"

namespace ether::models {

// config.json of the family. What differs between its members is data here.
struct LlamaConfig {
    std::string model_type;
    int64_t vocab_size, hidden_size, intermediate_size, layers, heads, kv_heads, head_dim, max_positions;
    double rms_norm_eps, initializer_range, attention_dropout;
    bool qkv_bias, output_bias, mlp_bias;  // Qwen2 has biases on q, k, v only
    bool head_norms;                       // Qwen3 normalises each head of q and k
    bool tied_embeddings;
    std::vector<int64_t> windows;  // per layer: keys a token sees, 0 = all (Mistral, Qwen2)

    // Rotary frequencies, (head_dim / 2): scaled as rope_scaling says (none, linear, llama3).
    std::vector<float> frequencies;

    static LlamaConfig from(const io::JsonObject& config, std::optional<double> dropout);
};

std::unique_ptr<nn::Model> make_llama(const io::Checkpoint& checkpoint, const LoadOptions& options);

}  // namespace ether::models
