// BERT (Devlin et al., arXiv 1810.04805), after transformers' models/bert/modeling_bert.py: encoder, pooler
// and classification head. A learned-position, post-norm encoder.
#pragma once

#include "ether/models/registry.h"

namespace ether::models {

// config.json of a BERT.
struct BertConfig {
    int64_t vocab_size, hidden_size, layers, heads, intermediate_size, max_positions, type_vocab_size;
    double layer_norm_eps, hidden_dropout, attention_dropout, classifier_dropout, initializer_range;
    std::string activation;

    static BertConfig from(const io::JsonObject& config);
};

std::unique_ptr<nn::Model> make_bert(const io::Checkpoint& checkpoint, const LoadOptions& options);

}  // namespace ether::models
