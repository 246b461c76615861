// BERT (Devlin et al., arXiv 1810.04805), after transformers' models/bert/modeling_bert.py: encoder, pooler
// and classification head.
#pragma once

#include "ether/models/registry.h"

namespace ether::models {

std::unique_ptr<nn::Model> make_bert(const io::Checkpoint& checkpoint, const LoadOptions& options);

}  // namespace ether::models
