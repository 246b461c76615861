#include "ether/models/roberta.h"

#include <ATen/Functions.h>

#include "ether/core/error.h"
#include "ether/models/bert_encoder.h"
#include "ether/models/common.h"
#include "ether/nn/weights.h"

namespace ether::models {
namespace {

// The position table's rows up to the padding token's number belong to padding (fairseq's make_positions).
int64_t first_position(const io::JsonObject& config) {
    const auto padding = config.get_or<int64_t>("pad_token_id", 1);
    const auto tokens = positive(config, "vocab_size");
    if (padding < 0 || padding >= tokens)
        fail(ErrorKind::model, "{}: key \"pad_token_id\" is {}, expected a token's number, below {}",
             config.name(), padding, tokens);
    return padding + 1;
}

class Roberta : public BertEncoder {
  public:
    Roberta(const io::Checkpoint& checkpoint, const LoadOptions& options)
        : BertEncoder(checkpoint, options, "roberta", first_position(checkpoint.config())) {
        nn::Weights weights(*this, checkpoint, shape_.prefix, options.seed);
        const int64_t d = config_.hidden_size;
        auto head = [&](const char* module, int64_t out) {
            return weights.head(module, out, d, true, config_.initializer_range, options.new_head);
        };
        dense_ = head("classifier.dense", d);
        output_site_ = head("classifier.out_proj", shape_.classes);
    }

    at::Tensor logits(const nn::Pass& pass) const override {
        const auto [first, row_pass] = first_tokens(pass);
        const double p = config_.classifier_dropout;
        const auto h = at::tanh((*dense_)(drop(first, p, row_pass, "classifier input"), row_pass));
        return (*output_site_)(drop(h, p, row_pass, "classifier"), row_pass);
    }

  private:
    nn::Site* dense_;
};

}  // namespace

std::unique_ptr<nn::Model> make_roberta(const io::Checkpoint& checkpoint, const LoadOptions& options) {
    return std::make_unique<Roberta>(checkpoint, options);
}

}  // namespace ether::models
