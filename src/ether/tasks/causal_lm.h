// Causal language modelling on plain text: every token is predicted from those before it.
#pragma once

#include "ether/tasks/task.h"

namespace ether::tasks {

class CausalLm : public Task {
  public:
    const char* name() const override { return "causal-lm"; }
    nn::Head head() const override { return nn::Head::causal_lm; }
    data::LabelType label_type() const override { return data::LabelType::none; }
    bool labels_required() const override { return false; }

    // Each text with its special tokens and an end-of-text token, split into pieces of max_length tokens.
    std::vector<data::Sequence> encode(const std::vector<data::Example>& examples, const std::string& file,
                                       const text::Tokenizer& tokenizer,
                                       const TextOptions& options) const override;
    double weight(const data::Batch& batch) const override;
    LossSum loss(methods::AdaptedModel& model, const nn::Pass& pass) const override;
    const char* main_score() const override { return "loss"; }
    bool higher_is_better() const override { return false; }
    // "loss" in nats a token, and "perplexity".
    Scores evaluate(methods::AdaptedModel& model, const std::vector<data::Sequence>& sequences,
                    int64_t batch) const override;
    nlohmann::json describe() const override;
};

// Sets each position's target to the next id; the last one's is ignored.
void set_next_token_targets(data::Sequence& sequence);

}  // namespace ether::tasks
