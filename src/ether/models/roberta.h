// RoBERTa (Liu et al., arXiv 1907.11692), after transformers' models/roberta/modeling_roberta.py: BERT's
// encoder with positions that begin behind the padding token's, and a classification head of two layers.
#pragma once

#include "ether/models/registry.h"

namespace ether::models {

std::unique_ptr<nn::Model> make_roberta(const io::Checkpoint& checkpoint, const LoadOptions& options);

}  // namespace ether::models
