#include "ether/models/registry.h"

#include <ATen/ops/zeros.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <set>

#include "ether/core/error.h"
#include "ether/core/utf8.h"
#include "ether/models/bert.h"
#include "ether/models/llama.h"
#include "ether/models/roberta.h"
#include "ether/nn/weights.h"

namespace ether::models {
namespace {

constexpr std::array kArchitectures = {
    Architecture{"bert", make_bert, "classifier", "BertForSequenceClassification", nullptr},
    Architecture{"llama", make_llama, "score", "LlamaForSequenceClassification", "LlamaForCausalLM",
                 "attention_bias", "mlp_bias"},
    Architecture{"mistral", make_llama, "score", "MistralForSequenceClassification", "MistralForCausalLM"},
    Architecture{"qwen2", make_llama, "score", "Qwen2ForSequenceClassification", "Qwen2ForCausalLM"},
    Architecture{"qwen3", make_llama, "score", "Qwen3ForSequenceClassification", "Qwen3ForCausalLM",
                 "attention_bias"},
    Architecture{"roberta", make_roberta, "classifier.out_proj", "RobertaForSequenceClassification", nullptr},
};

// A block's tensor that the model has no use for is a sign of another model: its config.json was mixed up,
// and without it the logits are wrong. (Outside of blocks there may be heads that are not asked for.)
void check_all_taken(const io::Checkpoint& checkpoint, const nn::Model& model) {
    constexpr const char* kOldBuffer = "rotary_emb.inv_freq";
    const auto& first = *std::find_if(model.sites().begin(), model.sites().end(),
                                      [](const nn::Site& site) { return site.layer == 0; });
    const auto blocks = first.name().substr(0, first.name().find('0'));  // "bert.encoder.layer."
    const auto& prefix = model.shape().prefix;                           // which files may lack
    const auto is_in_block = [&](const std::string& name) {
        return nn::block_number(name) && (name.starts_with(blocks) || (prefix + name).starts_with(blocks));
    };
    std::vector<std::string> left;
    for (const auto& name : checkpoint.names())
        if (is_in_block(name) && !model.taken().contains(name) && !name.ends_with(kOldBuffer))
            left.push_back(name);
    if (left.empty()) return;
    fail(ErrorKind::model,
         "{}: tensor \"{}\"{} has no place in the {} of {} layers that config.json describes; it belongs to "
         "another model",
         checkpoint.path().string(), printable(left.front(), 120),
         left.size() > 1 ? fmt::format(" and {} more", left.size() - 1) : "", model.shape().architecture,
         model.shape().layers);
}

}  // namespace

std::span<const Architecture> architectures() { return kArchitectures; }

const Architecture& architecture_of(const io::Checkpoint& checkpoint) {
    const auto type = checkpoint.config().get<std::string>("model_type");
    std::vector<std::string> known;
    for (const auto& architecture : kArchitectures) {
        if (type == architecture.model_type) return architecture;
        known.emplace_back(architecture.model_type);
    }
    fail(ErrorKind::model, "{}: model_type \"{}\" is not supported; known architectures: {}",
         checkpoint.config().name(), printable(type), fmt::join(known, ", "));
}

void declare_new_biases(const nn::Model& base, nlohmann::json& config,
                        std::vector<std::pair<std::string, at::Tensor>>& tensors) {
    const auto& type = base.shape().architecture;
    const auto& architecture = *std::find_if(kArchitectures.begin(), kArchitectures.end(),
                                             [&](const auto& known) { return type == known.model_type; });
    const auto switch_of = [&](const std::string& name) {
        return name.find(".self_attn.") != std::string::npos ? architecture.attention_bias
               : name.find(".mlp.") != std::string::npos     ? architecture.mlp_bias
                                                             : nullptr;
    };
    std::set<std::string> names, switches;
    for (const auto& [name, tensor] : tensors) {
        names.insert(name);
        if (!name.ends_with(".bias") || base.tensors().contains(name)) continue;
        const char* key = switch_of(name);
        if (!key)
            fail(ErrorKind::adapter,
                 "{}: the adapter gives this layer a bias, for which a {} has no place; it cannot be merged, "
                 "but "
                 "--adapter takes it as it is",
                 name, type);
        config[key] = true;
        switches.insert(key);
    }
    for (const auto& site : base.sites()) {
        const char* key = switch_of(site.name());
        if (key && switches.contains(key) && !names.contains(site.name() + ".bias"))
            tensors.emplace_back(site.name() + ".bias",
                                 at::zeros({site.linear.out()}, tensors.front().second.options()));
    }
}

std::unique_ptr<nn::Model> load_model(const io::Checkpoint& checkpoint, const LoadOptions& options) {
    LoadOptions chosen = options;
    if (chosen.dtype == at::ScalarType::Undefined) chosen.dtype = stored_dtype(checkpoint);
    auto model = architecture_of(checkpoint).make(checkpoint, chosen);
    check_all_taken(checkpoint, *model);
    return model;
}

at::ScalarType stored_dtype(const io::Checkpoint& checkpoint) {
    for (const auto& name : checkpoint.names())
        if (name.ends_with(".weight"))
            return checkpoint.info(name).dtype == "BF16" ? at::kBFloat16 : at::kFloat;
    return at::kFloat;
}

std::optional<int64_t> stored_classes(const io::Checkpoint& checkpoint) {
    const auto head = std::string(architecture_of(checkpoint).classifier) + ".weight";
    if (!checkpoint.contains(head)) return std::nullopt;
    const auto& shape = checkpoint.info(head).shape;
    if (shape.size() != 2 || shape[0] == 0)
        fail(ErrorKind::model, "{}: tensor \"{}\" has shape {}, expected (classes, width)",
             checkpoint.path().string(), head, nn::shape_text(shape));
    return shape[0];
}

std::optional<int64_t> stored_classes(const io::AdapterFiles& adapter, const io::Checkpoint& checkpoint) {
    const auto head = std::string(architecture_of(checkpoint).classifier) + ".weight";
    for (const auto& [name, tensor] : adapter.tensors)
        if (name.ends_with(head) && tensor.dim() == 2 && tensor.size(0) > 0) return tensor.size(0);
    return std::nullopt;
}

std::vector<std::string> stored_class_names(const io::Checkpoint& checkpoint, int64_t classes) {
    const auto& config = checkpoint.config();
    const auto labels = config.has("id2label") ? std::optional(config.object("id2label")) : std::nullopt;
    std::vector<std::string> names, numbers;
    for (int64_t i = 0; i < classes; ++i) {
        numbers.push_back(std::to_string(i));
        if (labels && labels->has(numbers.back())) names.push_back(labels->get<std::string>(numbers.back()));
    }
    const bool are_its =
        labels && labels->document().size() == names.size() && names.size() == numbers.size();
    return are_its ? names : numbers;
}

bool is_multi_label(const io::Checkpoint& checkpoint) {
    const auto& config = checkpoint.config();
    return config.has("problem_type") &&
           config.get<std::string>("problem_type") == "multi_label_classification";
}

int64_t head_classes(const io::Checkpoint& checkpoint, const LoadOptions& options) {
    return options.new_head ? options.classes : stored_classes(checkpoint).value_or(options.classes);
}

}  // namespace ether::models
