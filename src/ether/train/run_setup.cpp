#include "ether/train/run_setup.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "ether/core/error.h"
#include "ether/core/hash.h"
#include "ether/core/utf8.h"
#include "ether/data/order.h"
#include "ether/io/adapter_description.h"
#include "ether/io/checkpoint.h"
#include "ether/io/hub_cache.h"
#include "ether/methods/registry.h"
#include "ether/models/registry.h"
#include "ether/ops/device.h"
#include "ether/tasks/classification.h"

namespace ether::train {
namespace {

// Where a head has just these labels, the task takes its order of them. Returns whether it does.
bool adopt_labels(std::vector<std::string> own, const std::string& source,
                  std::unique_ptr<tasks::Task>& task) {
    const auto* classification = dynamic_cast<const tasks::Classification*>(task.get());
    if (!classification) return own.size() == 1 && task->classes() == 1;  // a regression's single output
    auto sorted = own, wanted = classification->labels().names();
    std::sort(sorted.begin(), sorted.end());
    std::sort(wanted.begin(), wanted.end());
    if (sorted != wanted) return false;
    task = std::make_unique<tasks::Classification>(data::LabelSet::from_names(std::move(own), source));
    return true;
}

// Whether labels are the numbers of a head's outputs, which have no better names.
bool are_numbers(const tasks::Task& task, const std::vector<std::string>& outputs) {
    const auto* classification = dynamic_cast<const tasks::Classification*>(&task);
    if (!classification || classification->classes() != static_cast<int64_t>(outputs.size())) return false;
    const auto& labels = classification->labels().names();
    for (size_t i = 0; i < outputs.size(); ++i)
        if (labels[i] != std::to_string(i) || outputs[i] != fmt::format("LABEL_{}", i)) return false;
    return true;
}

// Whether the model's own head is for the task's labels.
bool adopt_own_head(const io::Checkpoint& checkpoint, std::unique_ptr<tasks::Task>& task) {
    const auto classes = models::stored_classes(checkpoint);
    if (!classes || task->classes() == 0 || models::is_multi_label(checkpoint)) return false;
    const auto names = models::stored_class_names(checkpoint, *classes);
    if (are_numbers(*task, names)) return true;
    return *classes == task->classes() && adopt_labels(names, checkpoint.config().name(), task);
}

// What is told of a head of the model that is not for the task's labels.
std::string note_of_other_head(const io::Checkpoint& checkpoint, int64_t classes) {
    const auto names = models::stored_class_names(checkpoint, classes);
    return fmt::format("the model's own head is for {} ({}), so a new one is trained",
                       models::is_multi_label(checkpoint) ? "several labels a text" : "other labels",
                       printable(fmt::format("{}", fmt::join(names, ", ")), 80));
}

// Whether the head of an adapter to train on is for the task's labels; one for others is left out of its
// files, which is noted.
bool adopt_head_of(io::AdapterFiles& files, const std::optional<io::JsonObject>& description,
                   const io::Checkpoint& checkpoint, std::unique_ptr<tasks::Task>& task,
                   std::vector<std::string>& notes) {
    const auto classes = models::stored_classes(files, checkpoint);
    if (!classes) return false;
    const auto before = description ? tasks::task_from(*description) : nullptr;
    const auto* classification = dynamic_cast<const tasks::Classification*>(before.get());
    auto names =
        classification ? classification->labels().names() : models::stored_class_names(checkpoint, *classes);
    const auto source = description ? description->name() : checkpoint.config().name();
    if (!description && are_numbers(*task, names)) return true;
    if (static_cast<int64_t>(names.size()) == *classes && adopt_labels(names, source, task)) return true;
    notes.push_back(fmt::format("the adapter's head is for other labels ({}), so it is left out",
                                printable(fmt::format("{}", fmt::join(names, ", ")), 80)));
    const auto head = nn::top_module(models::architecture_of(checkpoint).classifier);
    std::erase_if(files.tensors, [&](const auto& entry) {
        return entry.first.find(fmt::format(".{}.", head)) != std::string::npos;
    });
    auto& modules = files.config["modules_to_save"];
    auto kept = nlohmann::json::array();
    for (const auto& module : modules)
        if (module != head) kept.push_back(module);
    modules = kept;
    return false;
}

std::string hash_of(const io::AdapterFiles& files) {
    Hash hash;
    const auto config = files.config.dump();
    hash.add(config.data(), config.size());
    for (const auto& [name, tensor] : files.tensors) {
        const auto values = tensor.contiguous();
        hash.add(name.data(), name.size());
        hash.add(values.const_data_ptr(), values.nbytes());
    }
    return hash.hex();
}

// Tells data sets apart: a hash over all that a model is given of them.
std::string hash_of(const std::vector<data::Sequence>& sequences) {
    Hash hash;
    auto add = [&](const std::vector<int64_t>& values) {
        hash.add(values.data(), values.size() * sizeof(int64_t));
    };
    for (const auto& sequence : sequences) {
        add(sequence.ids), add(sequence.type_ids), add(sequence.targets);
        hash.add(&sequence.label, sizeof(sequence.label));
    }
    return hash.hex();
}

// For methods that choose what they train by how the base model answers: its batches, in an order of their
// own.
class BaseRuns {
  public:
    BaseRuns(const RunConfig& config, const RunSetup& setup) : config_(config), setup_(setup) {}

    void next(const nn::Model& base) {
        if (batches_.empty())
            batches_ =
                data::EpochOrder(data::lengths_of(setup_.training),
                                 {static_cast<uint64_t>(config_.seed), config_.batch, config_.bucketing})
                    .epoch(0);
        const auto& rows = batches_[next_++ % batches_.size()];
        const auto batch = data::collate(setup_.training, rows, setup_.task->label_type()).to(base.device());
        const at::NoGradGuard no_grad;
        if (setup_.task->head() == nn::Head::causal_lm && !base.output_site().watch)
            base.hidden({.batch = batch});
        else
            base.logits({.batch = batch});
    }

  private:
    const RunConfig& config_;
    const RunSetup& setup_;
    std::vector<data::BatchRows> batches_;
    size_t next_ = 0;
};

}  // namespace

void take_method(RunConfig& config, bool given) {
    const auto names = io::split_adapters(config.adapter);
    if (names.size() > 1 || (!names.empty() && !names[0].weight.empty()))
        fail(ErrorKind::usage,
             "--adapter: training goes on from one adapter as it is, not from {}; merge what else there is "
             "into "
             "the model first (ether merge)",
             config.adapter);
    const auto files = io::read_adapter(io::resolve_adapter(config.adapter));
    const std::string own = with_prefix(
        config.adapter, [&] { return std::string(methods::method_of(files.config).name); },
        ErrorKind::adapter);
    if (given && config.method != own)
        fail(ErrorKind::usage, "--adapter: {} is of method {}, which it keeps, not {}; leave --method out",
             config.adapter, own, config.method);
    config.method = own;
}

RunSetup read_setup(const RunConfig& config) {
    RunSetup setup;
    const auto device = ops::device_named(config.device);
    const auto checkpoint = io::Checkpoint::open(io::resolve_model(config.model));
    setup.base.emplace(checkpoint);
    auto table = config.columns;
    table.labels_required = config.task == "classify";
    const auto examples = data::read_examples(config.data, table);
    setup.task = tasks::make_task(config.task, examples, config.data);
    const bool own_head = adopt_own_head(checkpoint, setup.task);
    bool adapter_head = false;
    std::optional<io::AdapterFiles> adapter;
    if (!config.adapter.empty()) {
        adapter = io::read_adapter(io::resolve_adapter(config.adapter));
        setup.inputs["the adapter that it began with"] = hash_of(*adapter);
        const auto description = io::description_of(
            *adapter, setup.base->identity(), {config.adapter, config.model, config.force}, setup.notes);
        adapter_head = adopt_head_of(*adapter, description, checkpoint, setup.task, setup.notes);
    }
    if (const auto other = models::stored_classes(checkpoint);
        other && setup.task->classes() > 0 && !own_head && !adapter_head)
        setup.notes.push_back(note_of_other_head(checkpoint, *other));
    auto model = models::load_model(checkpoint, {.head = setup.task->head(),
                                                 .classes = setup.task->classes(),
                                                 .new_head = !own_head,
                                                 .dtype = dtype_named(config.dtype),
                                                 .seed = static_cast<uint64_t>(config.seed),
                                                 .device = device,
                                                 .dropout = config.model_dropout});
    const auto tokenizer = text::Tokenizer::load(checkpoint.path(), tasks::embedding_rows(model->shape()));
    model->check_finite(checkpoint.path().string());
    const int64_t positions = model->shape().max_positions;
    if (config.max_length > positions)
        fail(ErrorKind::usage, "--max-length: {} is more than the model's {} positions", config.max_length,
             positions);
    setup.max_length = config.max_length ? config.max_length : std::min(tasks::kDefaultMaxLength, positions);

    // What the data need not be encoded for is checked before.
    const auto encode = [&] {
        if (!setup.training.empty()) return;
        const tasks::TextOptions options{.max_length = setup.max_length};
        setup.training = setup.task->encode(examples, config.data, tokenizer, options);
        if (config.eval_data.empty()) return;
        table.labels_required = setup.task->labels_required();
        setup.evaluation = setup.task->encode(data::read_examples(config.eval_data, table), config.eval_data,
                                              tokenizer, options);
    };
    // A head that the model brings is trained like a new one, as in PEFT's SEQ_CLS.
    std::vector<std::string> head;
    if (own_head) head.push_back(nn::top_module(model->output_site().name()));
    BaseRuns base_runs(config, setup);
    if (adapter) {
        setup.model = with_prefix(
            config.adapter,
            [&] { return std::make_unique<methods::AdaptedModel>(std::move(model), *adapter, head); },
            ErrorKind::adapter);
    } else {
        auto wanted = config.adapter_config();
        wanted.modules_to_save.insert(wanted.modules_to_save.end(), head.begin(), head.end());
        setup.model =
            std::make_unique<methods::AdaptedModel>(std::move(model), wanted, [&](const nn::Model& base) {
                encode();
                base_runs.next(base);
            });
    }
    if (const int64_t left = setup.model->model().shape().max_positions; setup.max_length > left) {
        if (config.max_length)
            fail(ErrorKind::usage,
                 "--max-length: {} is more than the {} positions that method {} leaves a text",
                 config.max_length, left, setup.model->method_name());
        setup.max_length = left;
        setup.training.clear();
    }
    if (setup.model->parameters().count() == 0)
        fail(ErrorKind::usage,
             "--method {}: nothing would be trained; choose another method or name --modules-to-save",
             config.method);
    encode();
    const auto& base = setup.base->identity();
    setup.inputs.insert({{"the base model", base.weights},
                         {"the base model's config.json", base.config},
                         {"the base model's tokenizer.json", base.tokenizer},
                         {"the training data", hash_of(setup.training)},
                         {"the evaluation data", hash_of(setup.evaluation)},
                         {"the labels' names", ether::hash_of(setup.task->describe().dump())}});
    return setup;
}

}  // namespace ether::train
