#include "ether/export/merge.h"

#include <ATen/Functions.h>

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>

#include "ether/core/error.h"
#include "ether/io/atomic.h"
#include "ether/io/file.h"
#include "ether/io/safetensors.h"
#include "ether/models/registry.h"
#include "ether/tasks/classification.h"

namespace ether::exporting {
namespace {

namespace fs = std::filesystem;

constexpr const char* kTokenizerFiles[] = {io::kTokenizerFile,
                                           io::kTokenizerConfigFile,
                                           "special_tokens_map.json",
                                           "added_tokens.json",
                                           "vocab.txt",
                                           "vocab.json",
                                           "merges.txt",
                                           "tokenizer.model",
                                           "chat_template.jinja",
                                           "generation_config.json"};

// The least share of the adapter's effect with which a merged model is not as good as unchanged.
constexpr double kRetained = 0.5;

nlohmann::json merged_config(const eval::LoadedAdapter& loaded, at::ScalarType dtype) {
    auto config = loaded.checkpoint.config().document();
    config.erase("torch_dtype");  // transformers 5 calls it dtype
    config["dtype"] = dtype == at::kBFloat16 ? "bfloat16" : "float32";
    if (loaded.model->is_headless()) return config;
    const auto& architecture = models::architecture_of(loaded.checkpoint);
    const bool classifies = loaded.task->head() == nn::Head::sequence_classification;
    config["architectures"] = {classifies ? architecture.classifier_class
                                          : architecture.language_model_class};
    if (!classifies) return config;
    std::vector<std::string> names = {"LABEL_0"};
    if (const auto* classifier = dynamic_cast<const tasks::Classification*>(loaded.task.get()))
        names = classifier->labels().names();
    if (!loaded.multi_label)
        config["problem_type"] = names.size() == 1 ? "regression" : "single_label_classification";
    config["id2label"] = config["label2id"] = nlohmann::json::object();
    for (size_t i = 0; i < names.size(); ++i) {
        config["id2label"][std::to_string(i)] = names[i];
        config["label2id"][names[i]] = i;
    }
    return config;
}

// The tensors of a model without a head by the names that the base has for them, with those of it that the
// merge has no use for, such as a masked language model's.
io::NamedTensors without_head(const eval::LoadedAdapter& loaded, const io::NamedTensors& merged) {
    const auto& checkpoint = loaded.checkpoint;
    const auto& model = loaded.model->model();
    const auto& prefix = model.shape().prefix;
    const auto& drawn = model.new_modules();
    io::NamedTensors result;
    for (const auto& [name, tensor] : merged) {
        if (std::find(drawn.begin(), drawn.end(), nn::top_module(name)) != drawn.end()) continue;
        const bool is_short = !checkpoint.contains(name) && name.starts_with(prefix);
        result.emplace_back(is_short ? name.substr(prefix.size()) : name, tensor);
    }
    for (const auto& name : checkpoint.names())
        if (!model.taken().contains(name)) result.emplace_back(name, checkpoint.tensor(name));
    return result;
}

// A tokenizer's file as the merged model needs it, if it does: a classifier cuts texts where the adapter's
// training did.
std::optional<std::string> tokenizer_file(const eval::LoadedAdapter& loaded, const std::string& name) {
    const auto path = loaded.checkpoint.path() / name;
    const bool is_there = io::has_entry(path);
    if (name == io::kTokenizerConfigFile && !loaded.model->is_headless() &&
        loaded.task->head() == nn::Head::sequence_classification) {
        auto config = is_there ? io::JsonObject::load(path).document() : nlohmann::json::object();
        config["model_max_length"] = loaded.max_length;
        return config.dump(2) + "\n";
    }
    return is_there ? std::optional(io::read_text_file(path)) : std::nullopt;
}

}  // namespace

MergeReport merge(eval::LoadedAdapter& loaded, const fs::path& out, at::ScalarType dtype) {
    const at::NoGradGuard no_grad;
    auto& adapted = *loaded.model;
    MergeReport report;
    report.dtype = dtype == at::ScalarType::Undefined ? models::stored_dtype(loaded.checkpoint) : dtype;

    io::AtomicFolder folder(out);
    const auto start = std::chrono::steady_clock::now();
    auto tensors = adapted.merged_tensors(report.dtype);
    auto config = merged_config(loaded, report.dtype);
    models::declare_new_biases(adapted.model(), config, tensors);
    if (adapted.is_headless()) tensors = without_head(loaded, tensors);
    const auto own_head = adapted.model().output_site().name() + ".weight";
    if (loaded.checkpoint.config().get_or<bool>("tie_word_embeddings", false) &&
        std::any_of(tensors.begin(), tensors.end(),
                    [&](const auto& tensor) { return tensor.first == own_head; }))
        config["tie_word_embeddings"] = false;  // the head is another matrix than the embeddings
    io::write_file_atomic(folder.path() / "config.json", config.dump(2) + "\n");
    for (const char* name : kTokenizerFiles)
        if (const auto text = tokenizer_file(loaded, name))
            io::write_file_atomic(folder.path() / name, *text);
    io::write_safetensors(folder.path() / "model.safetensors", tensors, {{"format", "pt"}});
    report.bytes = static_cast<int64_t>(fs::file_size(folder.path() / "model.safetensors"));
    report.write_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();

    io::check_written(folder.path() / "model.safetensors", tensors);
    const Probe probe(loaded);
    const auto again = models::load_model(
        io::Checkpoint::open(folder.path()),
        {.head = loaded.task->head(), .classes = loaded.task->classes(), .dtype = adapted.model().dtype()});
    static_cast<Comparison&>(report) = probe.compare(again->logits({.batch = probe.batch()}));
    const bool exact = report.dtype == at::kFloat && adapted.model().dtype() == at::kFloat;
    const double tolerance = report.tolerance(exact);
    if (!(report.largest_difference <= tolerance))
        fail(ErrorKind::numeric,
             "{}: the merged model's logits differ from the adapter's by {:.3g}, more than {:.3g} allows "
             "in {}; nothing was written{}",
             out.string(), report.largest_difference, tolerance, io::dtype_name(report.dtype),
             exact ? "" : "; try --dtype f32");
    if (!exact && report.retained && !(*report.retained >= kRetained && *report.distance < 1))
        fail(ErrorKind::numeric,
             "{}: in {} the merged model retains {:.0f}% of what the adapter changes, and is "
             "{:.2g} times as far from it as the base is; nothing was written; --dtype f32 retains all",
             out.string(), io::dtype_name(report.dtype), 100 * *report.retained, *report.distance);
    loaded.base.check();
    folder.commit();
    return report;
}

}  // namespace ether::exporting
