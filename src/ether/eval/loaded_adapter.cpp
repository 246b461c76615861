#include "ether/eval/loaded_adapter.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "ether/core/error.h"
#include "ether/io/hub_cache.h"
#include "ether/models/registry.h"
#include "ether/tasks/causal_lm.h"
#include "ether/tasks/classification.h"

namespace ether::eval {
namespace {

constexpr int64_t kDefaultMaxLength = 512;

// Names of the model's own classes: id2label, or their numbers.
std::vector<std::string> class_names(const io::Checkpoint& checkpoint, int64_t classes) {
    std::vector<std::string> names;
    const auto& config = checkpoint.config();
    const auto labels = config.has("id2label") ? std::optional(config.object("id2label")) : std::nullopt;
    for (int64_t i = 0; i < classes; ++i) {
        const auto key = std::to_string(i);
        names.push_back(labels && labels->has(key) ? labels->get<std::string>(key) : key);
    }
    return names;
}

// The classes of an adapter without ether.json: the rows of its own head.
std::optional<int64_t> head_rows(const io::AdapterFiles& files) {
    for (const auto& [name, tensor] : files.tensors)
        if (name.ends_with("classifier.weight") || name.ends_with("score.weight")) return tensor.size(0);
    return std::nullopt;
}

std::unique_ptr<tasks::Task> own_task(const io::Checkpoint& checkpoint, std::optional<int64_t> classes) {
    if (!classes) classes = models::stored_classes(checkpoint);
    if (!classes) return std::make_unique<tasks::CausalLm>();
    if (*classes == 1) return std::make_unique<tasks::Regression>();
    return std::make_unique<tasks::Classification>(
        data::LabelSet::from_names(class_names(checkpoint, *classes)));
}

}  // namespace

LoadedAdapter load_adapter(const LoadOptions& options) {
    LoadedAdapter loaded{.checkpoint = io::Checkpoint::open(io::resolve_model(options.model))};
    std::optional<io::AdapterFiles> files;
    if (!options.adapter.empty()) files = io::read_adapter(options.adapter);
    if (files && files->ether) {
        const auto& ether = *files->ether;
        const auto fingerprint = ether.value("base_fingerprint", "");
        if (fingerprint != loaded.checkpoint.fingerprint() && !options.force)
            fail(ErrorKind::adapter,
                 "{}: the adapter was trained on another base model than {} (fingerprints {} and {}); "
                 "--force uses it all the same",
                 options.adapter, options.model, fingerprint, loaded.checkpoint.fingerprint());
        loaded.task = tasks::task_from(ether);
        loaded.max_length = ether.value("max_length", int64_t{0});
    } else if (files) {
        loaded.notes.push_back(
            fmt::format("{} has no ether.json, so nobody can tell whether it belongs to this base model",
                        options.adapter));
    }
    if (!loaded.task) loaded.task = own_task(loaded.checkpoint, files ? head_rows(*files) : std::nullopt);
    auto model = models::load_model(
        loaded.checkpoint,
        {.head = loaded.task->head(), .classes = loaded.task->classes(), .dtype = options.dtype});
    if (!files && !model->new_modules().empty())
        fail(ErrorKind::model,
             "{}: the model has no {} of its own; give the adapter that holds one with --adapter",
             options.model, model->new_modules().front());
    if (!loaded.max_length) loaded.max_length = std::min(kDefaultMaxLength, model->shape().max_positions);
    loaded.model = files ? std::make_unique<methods::AdaptedModel>(std::move(model), *files)
                         : std::make_unique<methods::AdaptedModel>(
                               std::move(model),
                               methods::AdapterConfig{
                                   .method = "head", .options = {}, .targets = {}, .modules_to_save = {}});
    return loaded;
}

}  // namespace ether::eval
