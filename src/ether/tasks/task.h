// Task: what a model is trained for. It turns examples into sequences, a pass into a loss, and a data set
// into scores. Immutable after construction.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "ether/data/batch.h"
#include "ether/data/labels.h"
#include "ether/data/table.h"
#include "ether/io/base_identity.h"
#include "ether/io/json_reader.h"
#include "ether/methods/adapted_model.h"
#include "ether/text/tokenizer.h"

namespace ether::tasks {

// A sum of losses over items (examples, or predicted tokens), so that micro-batches add up to the large batch
// exactly.
struct LossSum {
    at::Tensor sum;          // scalar, differentiable
    double weight = 0;       // number of items
    at::Tensor logits = {};  // where the task forms them; for Adapter::extra_loss
};

using Scores = std::map<std::string, double>;  // e.g. {"accuracy", 0.8}, always with "loss"

// Where nothing else is asked for, and the model has as many positions.
inline constexpr int64_t kDefaultMaxLength = 512;

// For a tokenizer to be checked against.
text::EmbeddingRows embedding_rows(const nn::ModelShape& shape);

struct TextOptions {
    int64_t max_length =
        0;  // tokens, special ones included; longer texts are cut (classify) or split (causal-lm)
};

class Task {
  public:
    virtual ~Task() = default;

    virtual const char* name() const = 0;  // on the command line
    virtual nn::Head head() const = 0;
    virtual int64_t classes() const { return 0; }  // outputs of a classification head
    virtual data::LabelType label_type() const = 0;
    virtual bool labels_required() const = 0;

    // Token ids and labels or targets. `file` is what errors call the examples' source.
    virtual std::vector<data::Sequence> encode(const std::vector<data::Example>& examples,
                                               const std::string& file, const text::Tokenizer& tokenizer,
                                               const TextOptions& options) const = 0;

    // Items in the batch's loss, known before the pass.
    virtual double weight(const data::Batch& batch) const = 0;
    virtual LossSum loss(methods::AdaptedModel& model, const nn::Pass& pass) const = 0;

    // The score that tells better adapters from worse, and whether higher is better.
    virtual const char* main_score() const = 0;
    virtual bool higher_is_better() const = 0;
    // Scores over all sequences, without gradients, in batches of `batch` examples of like length.
    virtual Scores evaluate(methods::AdaptedModel& model, const std::vector<data::Sequence>& sequences,
                            int64_t batch) const = 0;

    // What ether.json must say so that the adapter can be used: {"task", "labels", ...}.
    virtual nlohmann::json describe() const = 0;
};

// Runs compute(pass) on all sequences in batches of like length, longest first, without gradients and, on the
// CPU, with a batch in every thread; consume(batch, result), both on the CPU, is called in that order by the
// calling thread. Throws Interrupted.
void for_each_batch(methods::AdaptedModel& model, const std::vector<data::Sequence>& sequences, int64_t batch,
                    data::LabelType labels, const std::function<at::Tensor(const nn::Pass&)>& compute,
                    const std::function<void(const data::Batch&, const at::Tensor&)>& consume);

// A task for new training data; classification and regression are told apart by the labels.
std::unique_ptr<Task> make_task(const std::string& name, const std::vector<data::Example>& examples,
                                const std::string& file);
// What ether.json says of an adapter for hidden states, without a head or a task.
inline constexpr const char* kNoTask = "feature-extraction";
// The task that an adapter or checkpoint was trained for, from describe()'s object; null: kNoTask.
std::unique_ptr<Task> task_from(const io::JsonObject& description);

// ether.json: what describe() says, the base model that the adapter belongs to, and how texts were read.
nlohmann::json adapter_description(const Task& task, const io::BaseIdentity& base, int64_t max_length,
                                   data::TableOptions columns);

extern const std::vector<std::string> kTaskNames;

}  // namespace ether::tasks
