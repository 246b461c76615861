#include "ether/tasks/task.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "ether/core/error.h"
#include "ether/core/interrupt.h"
#include "ether/core/parallel.h"
#include "ether/core/utf8.h"
#include "ether/data/order.h"
#include "ether/tasks/causal_lm.h"
#include "ether/tasks/classification.h"

namespace ether::tasks {

const std::vector<std::string> kTaskNames = {"classify", "causal-lm"};

text::EmbeddingRows embedding_rows(const nn::ModelShape& shape) {
    text::EmbeddingRows rows{.ids = shape.vocab_size};
    if (shape.token_types) rows.types = shape.token_types;
    return rows;
}

void for_each_batch(methods::AdaptedModel& model, const std::vector<data::Sequence>& sequences, int64_t batch,
                    data::LabelType labels, const std::function<at::Tensor(const nn::Pass&)>& compute,
                    const std::function<void(const data::Batch&, const at::Tensor&)>& consume) {
    const at::NoGradGuard no_grad;
    const auto order = data::evaluation_order(data::lengths_of(sequences), batch);
    const auto device = model.model().device();
    const auto threads = device.is_cpu() ? static_cast<size_t>(num_threads()) : 1;
    model.bind(nn::Pass{data::Batch{}});  // without dropout forms are the same for all batches
    for (size_t first = 0; first < order.size(); first += threads) {
        if (interrupt_signal()) throw Interrupted{};
        const size_t count = std::min(threads, order.size() - first);
        std::vector<data::Batch> batches(count);
        std::vector<at::Tensor> results(count);
        for (size_t i = 0; i < count; ++i) batches[i] = data::collate(sequences, order[first + i], labels);
        parallel_for(static_cast<int64_t>(count), 1, [&](int, int64_t begin, int64_t end) {
            const at::NoGradGuard no_grad_here;  // it holds for one thread
            for (auto i = static_cast<size_t>(begin); i < static_cast<size_t>(end); ++i)
                results[i] = compute({.batch = batches[i].to(device), .bound = true}).cpu();
        });
        for (size_t i = 0; i < count; ++i) consume(batches[i], results[i]);
    }
}

std::unique_ptr<Task> make_task(const std::string& name, const std::vector<data::Example>& examples,
                                const std::string& file) {
    if (name == "causal-lm") return std::make_unique<CausalLm>();
    if (name != "classify")
        fail(ErrorKind::usage, "--task: \"{}\" is not known, expected one of {}", name,
             fmt::join(kTaskNames, ", "));
    if (data::label_kind(examples) == data::LabelKind::real) return std::make_unique<Regression>();
    return std::make_unique<Classification>(data::LabelSet::from_examples(examples, file));
}

std::unique_ptr<Task> task_from(const io::JsonObject& description) {
    const auto name = description.get<std::string>("task");
    if (name == kNoTask) return nullptr;
    if (name == "causal-lm") return std::make_unique<CausalLm>();
    if (name == "regression") return std::make_unique<Regression>();
    if (name == "classify")
        return std::make_unique<Classification>(data::LabelSet::from_names(
            description.get<std::vector<std::string>>("labels"), description.name()));
    fail(ErrorKind::adapter, "{}: task \"{}\" is not known; expected classify, regression or causal-lm",
         description.name(), printable(name));
}

nlohmann::json adapter_description(const Task& task, const io::BaseIdentity& base, int64_t max_length,
                                   data::TableOptions columns) {
    auto description = task.describe();
    description["format"] = 1;
    description["base_fingerprint"] = base.weights;
    description["base_config"] = base.config;
    description["base_tokenizer"] = base.tokenizer;
    description["max_length"] = max_length;
    for (const auto& field : columns.fields()) description[field.config_key()] = field.to_json();
    return description;
}

}  // namespace ether::tasks
