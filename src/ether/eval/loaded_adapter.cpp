#include "ether/eval/loaded_adapter.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "ether/core/error.h"
#include "ether/io/adapter_description.h"
#include "ether/io/hub_cache.h"
#include "ether/models/registry.h"
#include "ether/tasks/causal_lm.h"
#include "ether/tasks/classification.h"

namespace ether::eval {
namespace {

std::vector<methods::NamedAdapter> read_adapters(const std::string& text, io::Pickles pickles) {
    std::vector<methods::NamedAdapter> adapters;
    for (const auto& [folder, weight] : io::split_adapters(text)) {
        auto& adapter = adapters.emplace_back(methods::NamedAdapter{folder, {}});
        if (!weight.empty())
            Field{.name = "adapter", .value = &adapter.weight, .help = "", .low = -1e6, .high = 1e6}.set(
                weight);
        adapter.files = io::read_adapter(io::resolve_adapter(folder), pickles);
    }
    if (adapters.empty())
        fail(ErrorKind::usage, "--adapter: \"{}\" names no folder; leave it out for the model as it is",
             text);
    return adapters;
}

// The task of a head that no ether.json describes. classes: of an adapter's head.
std::unique_ptr<tasks::Task> own_task(const io::Checkpoint& checkpoint, std::optional<int64_t> classes,
                                      std::vector<std::string>& notes) {
    if (!classes) classes = models::stored_classes(checkpoint);
    // For hidden states alone: what a head makes of them, drawn at random, serves to compare them.
    if (!classes && !models::architecture_of(checkpoint).language_model_class)
        return std::make_unique<tasks::Regression>();
    if (!classes) return std::make_unique<tasks::CausalLm>();
    if (*classes == 1) return std::make_unique<tasks::Regression>();
    if (const auto own = models::stored_classes(checkpoint); own && *own != *classes)
        notes.push_back(fmt::format(
            "the adapter's head has {} labels and the model's {}, so they are numbered", *classes, *own));
    return std::make_unique<tasks::Classification>(data::LabelSet::from_names(
        models::stored_class_names(checkpoint, *classes), checkpoint.config().name()));
}

}  // namespace

text::Tokenizer LoadedAdapter::tokenizer() const {
    return text::Tokenizer::load(checkpoint.path(), tasks::embedding_rows(model->model().shape()));
}

void LoadedAdapter::check_has_head() const {
    if (model->is_headless())
        fail(ErrorKind::model,
             "{}: the model has neither a classification head nor a language model's, and --adapter names "
             "none that was trained with one; such adapters are for hidden states: ether merge, ether export",
             checkpoint.path().string());
}

void LoadedAdapter::check_one_label() const {
    check_has_head();
    if (multi_label)
        fail(ErrorKind::model,
             "{}: problem_type is multi_label_classification, several labels a text, for which there are no "
             "scores "
             "and no predictions here; ether logits writes the head's values",
             checkpoint.config().name());
}

LoadedAdapter load_adapter(const LoadOptions& options) {
    auto checkpoint = io::Checkpoint::open(io::resolve_model(options.model));
    LoadedAdapter loaded{.checkpoint = checkpoint, .base = io::BaseWatch(checkpoint)};
    const auto adapters = options.adapter.empty() ? std::vector<methods::NamedAdapter>()
                                                  : read_adapters(options.adapter, options.pickles);
    const auto base = adapters.empty() ? io::BaseIdentity() : loaded.base.identity();
    std::optional<int64_t> head;  // rows of an adapter's own
    for (const auto& adapter : adapters) {
        if (!head && (head = models::stored_classes(adapter.files, loaded.checkpoint)))
            // What an adapter without a head was trained for counts no more.
            loaded.task = nullptr, loaded.columns = {}, loaded.max_length = 0;
        const auto ether = io::description_of(adapter.files, base,
                                              {adapter.name, options.model, options.force}, loaded.notes);
        if (!ether || loaded.task) continue;
        loaded.task = tasks::task_from(*ether);
        loaded.max_length = ether->get_or<int64_t>("max_length", 0);
        for (const auto& field : loaded.columns.fields())
            if (ether->has(field.config_key()))
                field.from_json(ether->document()[field.config_key()], ether->name());
    }
    const auto own_classes = models::stored_classes(loaded.checkpoint);
    const bool has_no_head = !loaded.task && !head && !own_classes;
    if (!loaded.task) {
        loaded.task = own_task(loaded.checkpoint, head, loaded.notes);
        loaded.multi_label = loaded.task->classes() > 1 && models::is_multi_label(loaded.checkpoint);
    }
    auto model = models::load_model(loaded.checkpoint, {.head = loaded.task->head(),
                                                        .classes = loaded.task->classes(),
                                                        .new_head = !adapters.empty() && own_classes &&
                                                                    *own_classes != loaded.task->classes(),
                                                        .dtype = options.dtype,
                                                        .device = options.device});
    if (adapters.empty() && !model->new_modules().empty())
        fail(ErrorKind::model,
             "{}: the model has no {} of its own; give the adapter that holds one with --adapter",
             options.model, model->new_modules().front());
    if (loaded.max_length < 0 || loaded.max_length > model->shape().max_positions)
        fail(ErrorKind::adapter, "{}/ether.json: max_length {} does not fit the model's {} positions",
             options.adapter, loaded.max_length, model->shape().max_positions);
    if (!loaded.max_length)
        loaded.max_length = std::min({tasks::kDefaultMaxLength, model->shape().max_positions,
                                      loaded.checkpoint.tokenizer_max_length()});
    model->check_finite(loaded.checkpoint.path().string());
    loaded.model =
        !adapters.empty()
            ? with_prefix(
                  options.adapter,
                  [&] { return std::make_unique<methods::AdaptedModel>(std::move(model), adapters); },
                  ErrorKind::adapter)
            : std::make_unique<methods::AdaptedModel>(
                  std::move(model),
                  methods::AdapterConfig{
                      .method = "head", .options = {}, .targets = {}, .modules_to_save = {}});
    if (loaded.model->is_headless() && !has_no_head)
        fail(ErrorKind::adapter,
             "{}: holds no {}, and {} has none for {} labels; give an adapter that was trained with one",
             options.adapter, loaded.model->model().new_modules().front(), options.model,
             loaded.task->classes());
    // An adapter may have taken positions.
    loaded.max_length = std::min(loaded.max_length, loaded.model->model().shape().max_positions);
    return loaded;
}

}  // namespace ether::eval
