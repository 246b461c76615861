// The encoder of BERT (Devlin et al., arXiv 1810.04805) and of its heirs: learned positions, post-norm
// blocks. After transformers' models/bert/modeling_bert.py. What differs between architectures is data here;
// heads are in their own files.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "ether/io/json_reader.h"
#include "ether/models/registry.h"

namespace ether::nn {
class Weights;
}

namespace ether::models {

// config.json of the family.
struct BertConfig {
    int64_t vocab_size, hidden_size, layers, heads, intermediate_size, max_positions, type_vocab_size;
    double layer_norm_eps, hidden_dropout, attention_dropout, classifier_dropout, initializer_range;
    std::string activation;

    static BertConfig from(const io::JsonObject& config, std::optional<double> dropout);
};

struct LayerNorm {
    at::Tensor weight, bias;
    double eps = 0;

    void load(nn::Weights& weights, const std::string& name, int64_t width, double epsilon);
    ops::Rows::Value operator()(ops::Rows& rows, ops::Rows::Value x) const;
};

class BertLayer;

class BertEncoder : public nn::Model {
  public:
    ~BertEncoder() override;
    at::Tensor hidden(const nn::Pass& pass) const override;
    // x (T, hidden_size), as the embeddings make it, through all blocks.
    at::Tensor encode(at::Tensor x, const nn::Pass& pass) const;

  protected:
    // Its tensors are named "<architecture>.embeddings..." and so on. A sequence's positions are the rows of
    // the position table from first_position on.
    BertEncoder(const io::Checkpoint& checkpoint, const LoadOptions& options, const std::string& architecture,
                int64_t first_position);

    // The final hidden state of each sequence's first token (B, hidden_size), and the pass of a head on it.
    std::pair<at::Tensor, nn::Pass> first_tokens(const nn::Pass& pass) const;
    // Dropout outside of the blocks.
    static at::Tensor drop(const at::Tensor& x, double p, const nn::Pass& pass, std::string_view place);

    const BertConfig config_;

  private:
    // Each token's row of the position table (T).
    at::Tensor position_rows(const data::Batch& batch) const;

    const int64_t first_position_;
    at::Tensor positions_, types_;
    LayerNorm norm_;
    std::vector<std::unique_ptr<BertLayer>> layers_;  // slots point into them
};

}  // namespace ether::models
