// TrainedTokens: rows of the word embeddings, trained in the place of the base's, for methods that do so.
#pragma once

#include "ether/methods/method.h"
#include "ether/nn/embeddings.h"

namespace ether::methods {

inline constexpr const char* kTrainedTokens = "trainable_tokens_delta";

class TrainedTokens {
  public:
    // Registers the rows, (k, d) float32 that start as the base's, under PEFT's name, in which `infix` ("" or
    // "token_adapter.") follows the table's module. ids: token numbers, each once. table: what a file calls
    // the table, or empty; an error where that is no table of words.
    TrainedTokens(const std::vector<int64_t>& ids, const std::string& table, const std::string& infix,
                  const MethodContext& context);

    const nn::TokenRows* rows() const { return &rows_; }

  private:
    nn::TokenRows rows_;
};

// "word_embeddings", of a model's table: what PEFT calls it in a configuration.
std::string table_name(const nn::Model& model);

}  // namespace ether::methods
