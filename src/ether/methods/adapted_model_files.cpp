// An AdaptedModel from and to adapter files.
#include <ATen/Functions.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "ether/core/error.h"
#include "ether/methods/adapted_model.h"
#include "ether/methods/adapter_config.h"
#include "ether/methods/trained_tokens.h"
#include "ether/nn/weights.h"

namespace ether::methods {
namespace {

constexpr std::string_view kShared = "base_model.", kPrefix = "base_model.model.";

// What a parameter of that bare name is called in an adapter's file; path: before the model's own names.
std::string file_name(const std::string& bare, std::string_view path = kPrefix) {
    const bool shared = bare.find('.') == std::string::npos;
    if (bare == kPromptEmbeddings) return bare;
    return std::string(shared ? kShared : path) + bare;
}

// The biases of whole modules, which PEFT saves twice more where it trains all biases.
bool is_head_copy(const std::string& key) {
    return key.ends_with(".bias") && (key.find(".original_module.") != std::string::npos ||
                                      key.find(".modules_to_save.") != std::string::npos);
}

void add_method(const Method& method, MethodOptions& options, const Targets& targets,
                const Selection& targeted, const nn::Model& model, nlohmann::json& config) {
    config["peft_type"] = method.peft_type;
    if (method.takes_sites) to_config(targets, targeted, model, config);
    for (const auto& field : options.fields()) config[field.config_key()] = field.to_json();
    options.to_config(config);
}

}  // namespace

void AdaptedModel::load(const Taken& adapter) {
    const at::NoGradGuard no_grad;
    const auto& tensors = adapter.tensors;
    std::set<std::string> used;
    auto read = [&](const nn::Parameter& parameter, const std::string& file_scope) {
        const auto name = parameter.bare(), full = file_scope + file_name(name);
        // A base model without head has shorter names: "encoder..." for "bert.encoder...".
        const auto& prefix = model_->shape().prefix;
        const auto bare =
            name.starts_with(prefix) ? file_scope + file_name(name.substr(prefix.size())) : full;
        const auto unwrapped = file_scope + file_name(name, kShared);
        const auto found = std::find_if(tensors.begin(), tensors.end(), [&](const auto& entry) {
            return entry.first == full || entry.first == bare || entry.first == unwrapped;
        });
        if (found == tensors.end())
            fail(ErrorKind::adapter,
                 "the adapter lacks the tensor \"{}\" {}; it was made for another model or is incomplete",
                 full, nn::shape_text(parameter.value.sizes()));
        if (found->second.sizes() != parameter.value.sizes())
            fail(ErrorKind::adapter,
                 "adapter tensor \"{}\" has shape {}, but this model and configuration need {}", found->first,
                 nn::shape_text(found->second.sizes()), nn::shape_text(parameter.value.sizes()));
        if (found->second.is_floating_point() != parameter.value.is_floating_point())
            fail(ErrorKind::adapter, "adapter tensor \"{}\" holds {}, expected {}", found->first,
                 io::dtype_name(found->second.scalar_type()), io::dtype_name(parameter.value.scalar_type()));
        at::Tensor(parameter.value).copy_(found->second);
        if (!parameter.value.isfinite().all().item<bool>())
            fail(ErrorKind::numeric, "adapter tensor \"{}\" holds NaN or infinity", found->first);
        used.insert(found->first);
    };
    std::set<std::string> whole;
    for (const auto& name : module_tensors(adapter.modules, *model_, kSavedTargets)) whole.insert(name);
    for (const auto& parameter : parameters_.all()) {
        if (!parameter.saved) continue;
        if (parameter.group == nn::ParameterGroup::head) {
            if (whole.contains(parameter.name)) read(parameter, "");
            continue;
        }
        const auto part = std::find_if(parts_.begin(), parts_.end(), [&](const Part& candidate) {
            return candidate.scope == parameter.scope;
        });
        if (part->name == adapter.name) read(parameter, part->file_scope);
    }
    for (const auto& [key, tensor] : tensors)
        if (!used.contains(key) && !is_base_weight(key, tensor) && !is_shared_copy(key, tensor) &&
            !is_head_copy(key))
            fail(ErrorKind::adapter, "adapter tensor \"{}\" {} fits nothing in this model and configuration",
                 key, nn::shape_text(tensor.sizes()));
}

bool AdaptedModel::is_base_weight(const std::string& key, const at::Tensor& tensor) const {
    constexpr std::string_view wrapped = ".base_layer.weight";
    if (!key.starts_with(kPrefix) || !key.ends_with(".weight")) return false;
    auto name = key.substr(kPrefix.size());
    if (key.ends_with(wrapped)) name.replace(name.size() - (wrapped.size() - 1), std::string::npos, "weight");
    const auto& head = model_->output_site();
    if (name == head.name() + ".weight" && model_->has_tied_output()) name = model_->embeddings().name;
    const auto& tensors = model_->tensors();
    auto found = tensors.find(name);
    if (found == tensors.end()) found = tensors.find(model_->shape().prefix + name);
    if (found == tensors.end()) return false;
    const auto& weight = *found->second.front();
    if (weight.sizes() == tensor.sizes() && at::equal(weight, tensor.to(weight.scalar_type()))) return true;
    fail(ErrorKind::adapter,
         "adapter tensor \"{}\" {} differs from this base model's {}: the base was changed beside the "
         "adapter (new tokens?); save that base with PEFT's get_base_model() and give it as --model",
         key, nn::shape_text(tensor.sizes()), nn::shape_text(weight.sizes()));
}

bool AdaptedModel::is_shared_copy(const std::string& key, const at::Tensor& tensor) const {
    const auto name = key.substr(key.rfind('.') + 1);
    const bool of_tied_head = name == kTrainedTokens && model_->has_tied_output() &&
                              key == fmt::format("{}{}.{}", kPrefix, model_->output_site().name(), name);
    const auto& all = parameters_.all();
    return std::any_of(all.begin(), all.end(), [&](const auto& shared) {
        const auto own = shared.bare();
        return (own == name || (of_tied_head && own.ends_with("." + name))) &&
               shared.value.sizes() == tensor.sizes() &&
               at::equal(shared.value, tensor.to(shared.value.scalar_type()));
    });
}

bool AdaptedModel::is_wrapped() const { return parts_.size() > 1 || parts_.front().method->wraps_layers; }

// What every adapter's configuration says about the model and its whole modules.
nlohmann::json AdaptedModel::common_config(const std::string& base) const {
    auto config = nlohmann::json::object();
    config["base_model_name_or_path"] = base;
    // PEFT asks a SEQ_CLS adapter for a head of its own; around a prefix it knows by the task what to run.
    const auto head = nn::top_module(model_->output_site().name());
    const bool has_head =
        std::find(modules_to_save_.begin(), modules_to_save_.end(), head) != modules_to_save_.end();
    config["task_type"] = model_->shape().head == nn::Head::causal_lm ? nlohmann::json("CAUSAL_LM")
                          : has_head || !is_wrapped()                 ? nlohmann::json("SEQ_CLS")
                                                                      : nlohmann::json();
    config["inference_mode"] = true;
    config["modules_to_save"] =
        modules_to_save_.empty() ? nlohmann::json() : nlohmann::json(modules_to_save_);
    return config;
}

io::AdapterFiles AdaptedModel::files(const std::string& base) const {
    io::AdapterFiles files;
    files.config = common_config(base);
    if (parts_.size() > 1) files.config["peft_type"] = kCombined;
    for (const auto& part : parts_) {
        auto config = parts_.size() > 1 ? nlohmann::json::object() : files.config;
        add_method(*part.method, *part.options, part.targets, part.targeted, *model_, config);
        part.adapter->to_config(config);
        if (parts_.size() > 1)
            files.config["parts"].push_back(config);
        else
            files.config = config;
        io::NamedTensors tensors;
        for (const auto& parameter : parameters_.all())
            if (parameter.saved && parameter.group != nn::ParameterGroup::head &&
                parameter.scope == part.scope)
                tensors.emplace_back(parameter.bare(), parameter.value.detach());
        part.adapter->to_tensors(tensors);
        for (const auto& [name, tensor] : tensors)
            files.tensors.emplace_back(part.scope + file_name(name), tensor);
    }
    add_whole_modules(files);
    return files;
}

io::AdapterFiles AdaptedModel::files_as(const Method& method, MethodOptions& options,
                                        const io::NamedTensors& tensors, const std::string& base) const {
    io::AdapterFiles files;
    files.config = common_config(base);
    // The targets of several methods are told by the layers' paths.
    Selection targeted{sites_};
    for (const auto& part : parts_) targeted.embeddings = targeted.embeddings || part.targeted.embeddings;
    add_method(method, options, parts_.size() > 1 ? Targets() : parts_.front().targets, targeted, *model_,
               files.config);
    for (const auto& [name, tensor] : tensors) files.tensors.emplace_back(file_name(name), tensor);
    add_whole_modules(files);
    return files;
}

void AdaptedModel::add_whole_modules(io::AdapterFiles& files) const {
    for (const auto& parameter : parameters_.all())
        if (parameter.saved && parameter.group == nn::ParameterGroup::head)
            files.tensors.emplace_back(file_name(parameter.name, is_wrapped() ? kPrefix : kShared),
                                       parameter.value.detach());
}

}  // namespace ether::methods
