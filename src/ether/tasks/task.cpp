#include "ether/tasks/task.h"

#include <ATen/core/grad_mode.h>

#include <nlohmann/json.hpp>

#include "ether/core/error.h"
#include "ether/data/order.h"
#include "ether/tasks/causal_lm.h"
#include "ether/tasks/classification.h"

namespace ether::tasks {

const std::vector<std::string> kTaskNames = {"classify", "causal-lm"};

void for_each_batch(const std::vector<data::Sequence>& sequences, int64_t batch, data::LabelType labels,
                    const std::function<void(const data::Batch&)>& consume) {
    const at::NoGradGuard no_grad;
    for (const auto& rows : data::evaluation_order(data::lengths_of(sequences), batch))
        consume(data::collate(sequences, rows, labels));
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
    if (name == "causal-lm") return std::make_unique<CausalLm>();
    if (name == "regression") return std::make_unique<Regression>();
    if (name == "classify")
        return std::make_unique<Classification>(
            data::LabelSet::from_names(description.get<std::vector<std::string>>("labels")));
    fail(ErrorKind::adapter, "{}: task \"{}\" is not known; expected classify, regression or causal-lm",
         description.name(), name);
}

}  // namespace ether::tasks
