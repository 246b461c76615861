// An AdaptedModel from and to adapter files.
#include <ATen/Functions.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "ether/core/error.h"
#include "ether/methods/adapted_model.h"
#include "ether/methods/adapter_config.h"
#include "ether/methods/registry.h"
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

std::vector<nlohmann::json> configs_in(const nlohmann::json& config) {
    if (peft_type_of(config) != kCombined) return {config};
    const auto parts = config.value("parts", nlohmann::json());
    if (!parts.is_array() || parts.empty())
        fail(ErrorKind::adapter,
             "{}: key \"parts\" is {}, expected the list of configurations of a {} adapter",
             io::kAdapterConfigFile, parts.dump(), kCombined);
    for (const auto& [key, value] : config.items())
        if (key != "parts" && !is_common(key) && !says_nothing(value))
            fail(ErrorKind::adapter, "{}: key \"{}\" = {} is not supported beside \"parts\"",
                 io::kAdapterConfigFile, key, value.dump());
    if (const auto bias = config.value("bias", nlohmann::json("none")); bias != "none")
        fail(ErrorKind::adapter, "{}: bias = {} is not supported beside \"parts\", expected \"none\"",
             io::kAdapterConfigFile, bias.dump());
    for (const auto& part : parts)
        if (part.is_object() && !says_nothing(part.value("modules_to_save", nlohmann::json())))
            fail(ErrorKind::adapter,
                 "{}: \"modules_to_save\" stands in one of the parts, expected beside them",
                 io::kAdapterConfigFile);
    return parts;
}

// Whether an adapter was made on the base model without a head, so that its names of blocks lack the prefix.
bool lacks_prefix(const io::AdapterFiles& files, const nn::Model& model) {
    const auto& block = model.sites().front().name();  // "model.layers.0.self_attn.q_proj"
    const auto begin = model.shape().prefix.size();
    const auto path = "base_model.model." + block.substr(begin, block.find('0') - begin);
    return std::any_of(files.tensors.begin(), files.tensors.end(),
                       [&](const auto& entry) { return entry.first.find(path) != std::string::npos; });
}

// PEFT adapts a model without a head by that model's own paths, which lack the prefix.
void name_without_head(io::AdapterFiles& files, const std::string& prefix) {
    const auto without = [&](const std::string& path) {
        return path.starts_with(prefix) ? path.substr(prefix.size()) : path;
    };
    const auto at_end = std::string(kPrefix) + prefix;
    for (auto& [name, tensor] : files.tensors)
        if (name.starts_with(at_end)) name = std::string(kPrefix) + name.substr(at_end.size());
    files.config["task_type"] = "FEATURE_EXTRACTION";
    for (auto& [key, value] : files.config.items()) {
        if (key == "target_modules" && value.is_array())
            for (auto& path : value) path = without(path.get<std::string>());
        if (key != "rank_pattern" || !value.is_object()) continue;
        auto renamed = nlohmann::json::object();
        for (const auto& [path, pattern] : value.items()) renamed[without(path)] = pattern;
        value = renamed;
    }
}

void add_method(const Method& method, MethodOptions& options, const Targets& targets,
                const Selection& targeted, const nn::Model& model, nlohmann::json& config) {
    config["peft_type"] = method.peft_type;
    if (method.takes_sites) to_config(targets, targeted, model, config);
    for (const auto& field : options.fields()) config[field.config_key()] = field.to_json();
    options.to_config(config);
}

}  // namespace

const Method& method_of(const nlohmann::json& config) {
    return method_of_peft_type(peft_type_of(configs_in(config).front()));
}

AdaptedModel::Part AdaptedModel::part_of(const nlohmann::json& config) {
    const Method& method = method_of_peft_type(peft_type_of(config));
    return {&method, options_from_config(method, config), targets_from_config(config)};
}

AdaptedModel::AdaptedModel(std::unique_ptr<nn::Model> model, const io::AdapterFiles& files)
    : AdaptedModel(std::move(model), std::vector{NamedAdapter{"", files}}) {}

AdaptedModel::AdaptedModel(std::unique_ptr<nn::Model> model, const std::vector<NamedAdapter>& adapters)
    : model_(std::move(model)), parameters_(model_->device()) {
    read(adapters, {});
}

AdaptedModel::AdaptedModel(std::unique_ptr<nn::Model> model, const io::AdapterFiles& files,
                           const std::vector<std::string>& modules_to_save)
    : model_(std::move(model)), parameters_(model_->device()) {
    auto more = modules_to_save;
    more.insert(more.end(), model_->new_modules().begin(), model_->new_modules().end());
    read({NamedAdapter{"", files}}, more);
}

void AdaptedModel::read(const std::vector<NamedAdapter>& adapters,
                        const std::vector<std::string>& more_modules) {
    std::vector<Taken> taken;
    int64_t values = 0;
    for (const auto& adapter : adapters) {
        taken.push_back(take(adapter));
        for (const auto& [key, tensor] : taken.back().tensors) values += tensor.numel();
    }
    for (const auto& module : more_modules)
        for (const auto& name : model_->module_tensors(module))
            values += model_->tensors().at(name).front()->numel();
    save_modules(more_modules);
    parameters_.expect_saved(values);
    build(0, /*from_file=*/true);
    for (const auto& adapter : taken) load(adapter);
}

AdaptedModel::Taken AdaptedModel::take(const NamedAdapter& adapter) {
    const auto& [name, files, weight] = adapter;
    Taken taken{name, modules_from_config(files.config, *model_), files.tensors};
    for (const auto& module : taken.modules)
        if (!parts_.empty() &&
            std::find(modules_to_save_.begin(), modules_to_save_.end(), module) != modules_to_save_.end())
            fail(ErrorKind::adapter,
                 "{}: holds a trained \"{}\", as another of the adapters does; only one of them may be taken",
                 name, module);
    save_modules(taken.modules);
    const auto configs = configs_in(files.config);
    const bool headless = lacks_prefix(files, *model_);
    for (size_t k = 0; k < configs.size(); ++k) {
        auto& part = parts_.emplace_back(part_of(configs[k]));
        part.name = name, part.weight = weight, part.file_scope = scope_of(k, configs.size());
        part.holds_modules = !taken.modules.empty();
        part.headless = headless;
        auto& all = taken.tensors;
        const auto first_own = std::stable_partition(all.begin(), all.end(), [&](const auto& entry) {
            return !entry.first.starts_with(part.file_scope);
        });
        io::NamedTensors own(first_own, all.end());
        all.erase(first_own, all.end());
        part.options->from_tensors(own);
        all.insert(all.end(), own.begin(), own.end());
    }
    return taken;
}

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
    for (const auto& [key, tensor] : tensors) {
        if (used.contains(key) || is_shared_copy(key, tensor) || is_head_copy(key)) continue;
        check_not_whole_elsewhere(key, adapter);
        if (!is_base_weight(key, tensor))
            fail(ErrorKind::adapter, "adapter tensor \"{}\" {} fits nothing in this model and configuration",
                 key, nn::shape_text(tensor.sizes()));
    }
}

void AdaptedModel::check_not_whole_elsewhere(const std::string& key, const Taken& adapter) const {
    for (const auto& module : modules_to_save_) {
        if (std::find(adapter.modules.begin(), adapter.modules.end(), module) != adapter.modules.end())
            continue;
        for (const auto& name : module_tensors({module}, *model_, kSavedTargets)) {
            const auto path = name.substr(0, name.rfind('.') + 1);
            const auto at = key.find(path);
            if (at == std::string::npos) continue;
            const auto part = key.substr(at + path.size());
            if (part == "weight" || part == "bias") continue;  // a copy of the base's
            fail(ErrorKind::adapter,
                 "adapter tensor \"{}\" adapts \"{}\", which {} whole; take one of them, or merge "
                 "one into the model first",
                 key, module, adapter.name.empty() ? "is trained" : "another of the adapters trained");
        }
    }
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

bool AdaptedModel::is_headless() const {
    const auto& drawn = model_->new_modules();
    return !drawn.empty() && std::none_of(drawn.begin(), drawn.end(), [&](const auto& module) {
        return std::find(modules_to_save_.begin(), modules_to_save_.end(), module) != modules_to_save_.end();
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
    if (is_headless()) name_without_head(files, model_->shape().prefix);
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
    if (is_headless()) name_without_head(files, model_->shape().prefix);
    return files;
}

void AdaptedModel::add_whole_modules(io::AdapterFiles& files) const {
    for (const auto& parameter : parameters_.all())
        if (parameter.saved && parameter.group == nn::ParameterGroup::head)
            files.tensors.emplace_back(file_name(parameter.name, is_wrapped() ? kPrefix : kShared),
                                       parameter.value.detach());
}

}  // namespace ether::methods
