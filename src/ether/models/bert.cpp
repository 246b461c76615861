#include "ether/models/bert.h"

#include <ATen/Functions.h>

#include "ether/models/bert_encoder.h"
#include "ether/nn/weights.h"

namespace ether::models {
namespace {

class Bert : public BertEncoder {
  public:
    Bert(const io::Checkpoint& checkpoint, const LoadOptions& options)
        : BertEncoder(checkpoint, options, "bert", 0) {
        nn::Weights weights(*this, checkpoint, shape_.prefix, options.seed);
        const int64_t d = config_.hidden_size;
        pooler_ = weights.site("bert.pooler.dense", d, d, true, -1);
        output_site_ =
            weights.head("classifier", shape_.classes, d, true, config_.initializer_range, options.new_head);
    }

    at::Tensor logits(const nn::Pass& pass) const override {
        const auto [first, row_pass] = first_tokens(pass);
        const auto pooled = at::tanh((*pooler_)(first, row_pass));
        return (*output_site_)(drop(pooled, config_.classifier_dropout, row_pass, "classifier"), row_pass);
    }

  private:
    nn::Site* pooler_;
};

}  // namespace

std::unique_ptr<nn::Model> make_bert(const io::Checkpoint& checkpoint, const LoadOptions& options) {
    return std::make_unique<Bert>(checkpoint, options);
}

}  // namespace ether::models
