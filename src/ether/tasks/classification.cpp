#include "ether/tasks/classification.h"

#include <ATen/Functions.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "ether/core/error.h"

namespace ether::tasks {
namespace {

constexpr double kLargestLabel = 1e15;  // of a regression: sums of squares must fit float32

// Mean over classes that occur (as label or prediction) of 2 TP / (2 TP + FP + FN), as scikit-learn's macro
// average.
double macro_f1(const std::vector<int64_t>& right, const std::vector<int64_t>& predicted,
                const std::vector<int64_t>& real) {
    double sum = 0;
    int64_t classes = 0;
    for (size_t c = 0; c < right.size(); ++c) {
        if (predicted[c] + real[c] == 0) continue;
        sum += 2.0 * static_cast<double>(right[c]) / static_cast<double>(predicted[c] + real[c]);
        ++classes;
    }
    return classes ? sum / static_cast<double>(classes) : 0;
}

}  // namespace

std::vector<data::Sequence> SequenceTask::encode(const std::vector<data::Example>& examples,
                                                 const std::string& file, const text::Tokenizer& tokenizer,
                                                 const TextOptions& options) const {
    std::vector<std::string> texts, pairs;
    for (const auto& example : examples) {
        texts.push_back(example.text);
        if (example.pair) pairs.push_back(*example.pair);
    }
    auto encodings = tokenizer.encode_batch(texts, pairs, options.max_length);
    std::vector<data::Sequence> sequences(examples.size());
    for (size_t i = 0; i < examples.size(); ++i) {
        if (encodings[i].ids.empty())
            fail(ErrorKind::data, "{}:{}: the text has no tokens", file, examples[i].line);
        sequences[i].ids = std::move(encodings[i].ids);
        sequences[i].type_ids = std::move(encodings[i].type_ids);
        if (!std::holds_alternative<std::monostate>(examples[i].label))
            sequences[i].label = label_of(examples[i], file);
    }
    return sequences;
}

LossSum Classification::loss(methods::AdaptedModel& model, const nn::Pass& pass) const {
    const auto logits = model.logits(pass);
    const auto wide = logits.scalar_type() == at::kBFloat16 ? logits.to(at::kFloat) : logits;
    return {at::cross_entropy_loss(wide, pass.batch.labels, {}, at::Reduction::Sum), weight(pass.batch),
            logits};
}

Scores Classification::evaluate(methods::AdaptedModel& model, const std::vector<data::Sequence>& sequences,
                                int64_t batch) const {
    const auto classes_count = static_cast<size_t>(classes());
    std::vector<int64_t> right(classes_count), predicted(classes_count), real(classes_count);
    double loss = 0;
    const auto compute = [&](const nn::Pass& pass) { return model.logits(pass).to(at::kFloat); };
    for_each_batch(
        model, sequences, batch, label_type(), compute, [&](const data::Batch& b, const at::Tensor& logits) {
            loss += at::cross_entropy_loss(logits, b.labels, {}, at::Reduction::Sum).item<double>();
            const auto choice = logits.argmax(-1);
            for (int64_t i = 0; i < b.size(); ++i) {
                const auto guess = static_cast<size_t>(choice[i].item<int64_t>()),
                           truth = static_cast<size_t>(b.labels[i].item<int64_t>());
                ++predicted[guess];
                ++real[truth];
                right[guess] += guess == truth;
            }
        });
    const auto count = static_cast<double>(sequences.size());
    int64_t total_right = 0;
    for (const auto value : right) total_right += value;
    return {{"accuracy", static_cast<double>(total_right) / count},
            {"macro_f1", macro_f1(right, predicted, real)},
            {"loss", loss / count}};
}

nlohmann::json Classification::describe() const { return {{"task", name()}, {"labels", labels_.names()}}; }

double Regression::label_of(const data::Example& example, const std::string& file) const {
    double label = 0;
    if (const auto* real = std::get_if<double>(&example.label))
        label = *real;
    else if (const auto* integer = std::get_if<int64_t>(&example.label))
        label = static_cast<double>(*integer);
    else
        fail(ErrorKind::data, "{}:{}: the label is not a number, as this regression needs", file,
             example.line);
    if (!(std::abs(label) <= kLargestLabel))
        fail(ErrorKind::data,
             "{}:{}: the label {:g} is beyond {:g}, so its square overflows; scale the labels", file,
             example.line, label, kLargestLabel);
    return label;
}

LossSum Regression::loss(methods::AdaptedModel& model, const nn::Pass& pass) const {
    const auto predictions = model.logits(pass).squeeze(1);
    const auto wide = predictions.scalar_type() == at::kBFloat16 ? predictions.to(at::kFloat) : predictions;
    return {at::mse_loss(wide, pass.batch.labels.to(wide.scalar_type()), at::Reduction::Sum),
            weight(pass.batch), predictions};
}

Scores Regression::evaluate(methods::AdaptedModel& model, const std::vector<data::Sequence>& sequences,
                            int64_t batch) const {
    double loss = 0, sum_x = 0, sum_y = 0, sum_xx = 0, sum_yy = 0, sum_xy = 0;
    const auto compute = [&](const nn::Pass& pass) {
        return model.logits(pass).squeeze(1).to(at::kFloat).contiguous();
    };
    for_each_batch(model, sequences, batch, label_type(), compute,
                   [&](const data::Batch& b, const at::Tensor& predictions) {
                       for (int64_t i = 0; i < b.size(); ++i) {
                           const double x = predictions[i].item<double>(), y = b.labels[i].item<double>();
                           loss += (x - y) * (x - y);
                           sum_x += x, sum_y += y, sum_xx += x * x, sum_yy += y * y, sum_xy += x * y;
                       }
                   });
    const auto n = static_cast<double>(sequences.size());
    const double spread = (n * sum_xx - sum_x * sum_x) * (n * sum_yy - sum_y * sum_y);
    return {{"loss", loss / n},
            {"pearson", spread > 0 ? (n * sum_xy - sum_x * sum_y) / std::sqrt(spread) : 0}};
}

nlohmann::json Regression::describe() const { return {{"task", name()}}; }

}  // namespace ether::tasks
