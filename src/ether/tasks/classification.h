// Sequence classification (cross entropy; accuracy and macro-F1) and, where labels are real numbers,
// regression (mean squared error; Pearson correlation). Both read one row of logits a sequence.
#pragma once

#include "ether/tasks/task.h"

namespace ether::tasks {

// What the two share: one label a sequence, and texts that are cut at max_length.
class SequenceTask : public Task {
  public:
    nn::Head head() const override { return nn::Head::sequence_classification; }
    bool labels_required() const override { return true; }
    double weight(const data::Batch& batch) const override { return static_cast<double>(batch.size()); }
    std::vector<data::Sequence> encode(const std::vector<data::Example>& examples, const std::string& file,
                                       const text::Tokenizer& tokenizer,
                                       const TextOptions& options) const override;

  protected:
    virtual double label_of(const data::Example& example, const std::string& file) const = 0;
};

class Classification : public SequenceTask {
  public:
    explicit Classification(data::LabelSet labels) : labels_(std::move(labels)) {}

    const data::LabelSet& labels() const { return labels_; }
    const char* name() const override { return "classify"; }
    int64_t classes() const override { return labels_.size(); }
    data::LabelType label_type() const override { return data::LabelType::index; }
    LossSum loss(methods::AdaptedModel& model, const nn::Pass& pass) const override;
    const char* main_score() const override { return "accuracy"; }
    bool higher_is_better() const override { return true; }
    Scores evaluate(methods::AdaptedModel& model, const std::vector<data::Sequence>& sequences,
                    int64_t batch) const override;
    nlohmann::json describe() const override;

  protected:
    double label_of(const data::Example& example, const std::string& file) const override {
        return static_cast<double>(labels_.index(example, file));
    }

  private:
    data::LabelSet labels_;
};

class Regression : public SequenceTask {
  public:
    const char* name() const override { return "regression"; }
    int64_t classes() const override { return 1; }
    data::LabelType label_type() const override { return data::LabelType::real; }
    LossSum loss(methods::AdaptedModel& model, const nn::Pass& pass) const override;
    const char* main_score() const override { return "loss"; }
    bool higher_is_better() const override { return false; }
    Scores evaluate(methods::AdaptedModel& model, const std::vector<data::Sequence>& sequences,
                    int64_t batch) const override;
    nlohmann::json describe() const override;

  protected:
    double label_of(const data::Example& example, const std::string& file) const override;
};

}  // namespace ether::tasks
