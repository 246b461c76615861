#include "ether/methods/adapted_model.h"

#include <ATen/Functions.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "ether/core/error.h"
#include "ether/core/near_name.h"
#include "ether/core/utf8.h"
#include "ether/io/json_reader.h"
#include "ether/methods/registry.h"
#include "ether/nn/weights.h"

namespace ether::methods {
namespace {

constexpr std::string_view kPrefix = "base_model.model.";

std::string file_name(const nn::Parameter& parameter) {
    return (parameter.shared() ? "base_model." : std::string(kPrefix)) + parameter.name;
}

// Keys of every adapter_config.json that are handled here or say nothing about the adapter's function.
const std::set<std::string> kCommonKeys = {"peft_type",
                                           "target_modules",
                                           "exclude_modules",
                                           "layers_to_transform",
                                           "modules_to_save",
                                           "task_type",
                                           "base_model_name_or_path",
                                           "inference_mode",
                                           "peft_version",
                                           "revision",
                                           "auto_mapping",
                                           "bias",
                                           "layers_pattern"};

// What PEFT can do and this version cannot: a name that looks like one of ours would be a wrong hint.
const std::set<std::string> kPeftFeatures = {"alpha_pattern",     "alora_invocation_tokens",
                                             "corda_config",      "ensure_weight_tying",
                                             "eva_config",        "fan_in_fan_out",
                                             "layer_replication", "kasa_config",
                                             "loftq_config",      "lora_bias",
                                             "lora_ga_config",    "megatron_config",
                                             "monteclora_config", "rank_pattern",
                                             "target_parameters", "trainable_token_indices",
                                             "use_bdlora",        "use_qalora",
                                             "velora_config"};

bool says_nothing(const nlohmann::json& value) {
    return value.is_null() || (value.is_boolean() && !value.get<bool>()) ||
           (value.is_structured() && value.empty()) ||
           (value.is_string() && value.get<std::string>().empty());
}

std::unique_ptr<MethodOptions> options_from_config(const Method& method, nlohmann::json config) {
    auto options = method.options();
    options->from_config(config);
    const auto fields = options->fields();
    auto known = kCommonKeys;
    for (const auto& field : fields) known.insert(field.config_key());
    const std::vector<std::string> names(known.begin(), known.end());
    for (const auto& [key, value] : config.items())
        if (!known.contains(key) && !says_nothing(value) && !method.ignores(key, value))
            fail(ErrorKind::adapter, "adapter_config.json: key \"{}\" = {} is not supported for {}{}", key,
                 value.dump(), method.peft_type,
                 kPeftFeatures.contains(key) ? ", a feature of PEFT that this version lacks; train without "
                                               "it, or merge the adapter with "
                                               "PEFT (merge_and_unload) and give the result as --model"
                                             : did_you_mean(key, names));
    const auto bias = config.value("bias", nlohmann::json("none"));
    const bool trains_biases = std::any_of(fields.begin(), fields.end(),
                                           [](const Field& field) { return field.config_key() == "bias"; });
    if (bias != "none" && !trains_biases)
        fail(ErrorKind::adapter, "adapter_config.json: bias = {} is not supported, expected \"none\"",
             bias.dump());
    for (const auto& field : fields)
        if (config.contains(field.config_key()))
            field.from_json(config[field.config_key()], "adapter_config.json");
    return options;
}

// The biases of whole modules, which PEFT saves twice more where it trains all biases.
bool is_head_copy(const std::string& key) {
    return key.ends_with(".original_module.bias") || key.ends_with(".modules_to_save.bias");
}

std::string required_type(const nlohmann::json& config) {
    return io::JsonObject(config, "adapter_config.json").get<std::string>("peft_type");
}

}  // namespace

AdaptedModel::AdaptedModel(std::unique_ptr<nn::Model> model, const AdapterConfig& config)
    : model_(std::move(model)),
      method_(&method_named(config.method)),
      options_(method_->options()),
      targets_(config.targets),
      modules_to_save_(config.modules_to_save) {
    const auto fields = options_->fields();
    for (const auto& [name, value] : config.options) {
        const auto* field = find_field(fields, name);
        std::vector<std::string> known;
        for (const auto& other : fields) known.push_back("--" + other.name);
        if (!field)
            fail(ErrorKind::usage, "--{}: method {} has no such option; it has {}", name, method_->name,
                 known.empty() ? "none" : fmt::format("{}", fmt::join(known, ", ")));
        field->set(value);
    }
    // What would be ignored in silence: a run that seems to adapt chosen layers, and does not.
    const bool all_modules = targets_.modules.empty() || targets_.modules == Targets().modules;
    if (!method_->takes_sites && (!all_modules || !targets_.exclude.empty() || !targets_.layers.empty()))
        fail(ErrorKind::usage,
             "--targets, --exclude and --layers: method {} adapts no chosen layers ({}); leave them out",
             method_->name, method_->summary);
    if (targets_.modules.empty()) targets_.modules = method_->targets;
    for (const auto& module : model_->new_modules())
        if (std::find(modules_to_save_.begin(), modules_to_save_.end(), module) == modules_to_save_.end())
            modules_to_save_.push_back(module);
    build(*options_, config.seed, /*from_file=*/false);
}

AdaptedModel::AdaptedModel(std::unique_ptr<nn::Model> model, const io::AdapterFiles& files)
    : model_(std::move(model)),
      method_(&method_of_peft_type(required_type(files.config))),
      options_(options_from_config(*method_, files.config)),
      targets_(targets_from_config(files.config)) {
    const auto modules = files.config.value("modules_to_save", nlohmann::json());
    // PEFT lists every classification head it knows; only those that the model has are meant.
    if (!says_nothing(modules) && !modules.is_array())
        fail(ErrorKind::adapter,
             "adapter_config.json: key \"modules_to_save\" is {}, expected a list of names", modules.dump());
    if (modules.is_array())
        for (const auto& module : modules) {
            if (!module.is_string())
                fail(ErrorKind::adapter,
                     "adapter_config.json: key \"modules_to_save\" holds {}, expected names", module.dump());
            const auto name = module.get<std::string>();
            const bool known_head = name == "classifier" || name == "score";
            if (!known_head || !model_->module_tensors(name).empty()) modules_to_save_.push_back(name);
        }
    build(*options_, 0, /*from_file=*/true);

    const at::NoGradGuard no_grad;
    std::set<std::string> used;
    for (const auto& parameter : parameters_.all()) {
        if (!parameter.saved) continue;
        const auto full = file_name(parameter);
        // A base model without head has shorter names: "encoder..." for "bert.encoder...".
        const auto& prefix = model_->shape().prefix;
        const auto bare = parameter.name.starts_with(prefix)
                              ? std::string(kPrefix) + parameter.name.substr(prefix.size())
                              : full;
        const auto found = std::find_if(files.tensors.begin(), files.tensors.end(), [&](const auto& entry) {
            return entry.first == full || entry.first == bare;
        });
        if (found == files.tensors.end())
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
        parameter.value.copy_(found->second);
        if (!parameter.value.isfinite().all().item<bool>())
            fail(ErrorKind::numeric, "adapter tensor \"{}\" holds NaN or infinity", found->first);
        used.insert(found->first);
    }
    for (const auto& [key, tensor] : files.tensors)
        if (!used.contains(key) && !is_base_weight(key, tensor) && !is_shared_copy(key, tensor) &&
            !is_head_copy(key))
            fail(ErrorKind::adapter, "adapter tensor \"{}\" {} fits nothing in this model and configuration",
                 key, nn::shape_text(tensor.sizes()));
}

bool AdaptedModel::is_base_weight(const std::string& key, const at::Tensor& tensor) const {
    constexpr std::string_view suffix = ".base_layer.weight";
    if (!key.starts_with(kPrefix) || !key.ends_with(suffix)) return false;
    const auto module = key.substr(kPrefix.size(), key.size() - kPrefix.size() - suffix.size());
    const auto site = std::find_if(sites_.begin(), sites_.end(),
                                   [&](const nn::Site* candidate) { return candidate->name() == module; });
    if (site == sites_.end()) return false;
    const auto& weight = (*site)->linear.weight;
    if (weight.sizes() == tensor.sizes() && at::equal(weight, tensor.to(weight.scalar_type()))) return true;
    fail(ErrorKind::adapter,
         "adapter tensor \"{}\" differs from this base model's weight: the base was changed beside the "
         "adapter (new tokens?); use the base that the adapter was trained with",
         key);
}

bool AdaptedModel::is_shared_copy(const std::string& key, const at::Tensor& tensor) const {
    const auto* shared = parameters_.find(key.substr(key.rfind('.') + 1));
    return shared && shared->value.sizes() == tensor.sizes() &&
           at::equal(shared->value, tensor.to(shared->value.scalar_type()));
}

void AdaptedModel::build(const MethodOptions& options, uint64_t seed, bool from_file) {
    const auto& words = from_file ? kSavedTargets : kTypedTargets;
    // A tied head that is trained whole leaves the embeddings as they are, as in PEFT.
    const auto& saved = modules_to_save_;
    if (std::find(saved.begin(), saved.end(), model_->output_site().name()) != saved.end())
        model_->untie_output();
    for (const auto& name : module_tensors(modules_to_save_, *model_, words)) {
        const auto& slots = model_->tensors().at(name);
        if (slots.size() > 1)  // PEFT would train one use of it and leave the other
            fail(ErrorKind::usage,
                 "{}: \"{}\" is shared by several layers (tied embeddings), so it cannot be trained whole "
                 "beside an adapter; --method full can",
                 words.modules_to_save, name);
        train_copy(*model_, parameters_, name, name, nn::ParameterGroup::head);
    }
    if (method_->takes_sites) {
        sites_ = select(targets_, *model_, words);
        // A layer that is trained whole needs no adapter; PEFT ignores one there.
        std::erase_if(sites_,
                      [&](const nn::Site* site) { return parameters_.find(site->name() + ".weight"); });
        if (sites_.empty())
            fail(ErrorKind::usage, "{}: every layer that \"{}\" matches is trained whole already",
                 words.modules, printable(targets_.modules, kShownPattern));
    }
    adapter_ =
        method_->make(options, {*model_, sites_, parameters_, Random(seed).stream("adapter"), from_file});
}

void AdaptedModel::bind(const nn::Pass& pass) {
    for (nn::Site* site : sites_) {
        site->forms = adapter_->forms(*site, pass);
        site->weight_grad = {};
        if (adapter_->wants_weight_grad(*site))
            site->weight_grad = [this, site](const at::Tensor& gradient) {
                adapter_->weight_grad(*site, gradient);
            };
    }
    model_->checkpoint_blocks(pass.checkpoint_activations);
}

at::Tensor AdaptedModel::hidden(const nn::Pass& pass) {
    if (!pass.bound) bind(pass);
    return model_->hidden(pass);
}

at::Tensor AdaptedModel::logits(const nn::Pass& pass) {
    if (!pass.bound) bind(pass);
    return model_->logits(pass);
}

int64_t AdaptedModel::method_parameters() const {
    return parameters_.count(nn::ParameterGroup::adapter) + parameters_.count(nn::ParameterGroup::base);
}

nlohmann::json AdaptedModel::config_for(const Method& method, MethodOptions& options,
                                        const std::string& base) const {
    auto config = nlohmann::json::object();
    config["peft_type"] = method.peft_type;
    config["base_model_name_or_path"] = base;
    // PEFT asks a SEQ_CLS adapter for a head of its own.
    const auto head = nn::top_module(model_->output_site().name());
    const bool has_head =
        std::find(modules_to_save_.begin(), modules_to_save_.end(), head) != modules_to_save_.end();
    config["task_type"] = model_->shape().head == nn::Head::causal_lm ? nlohmann::json("CAUSAL_LM")
                          : has_head                                  ? nlohmann::json("SEQ_CLS")
                                                                      : nlohmann::json();
    config["inference_mode"] = true;
    config["bias"] = "none";
    config["modules_to_save"] =
        modules_to_save_.empty() ? nlohmann::json() : nlohmann::json(modules_to_save_);
    if (method.takes_sites) to_config(targets_, sites_, config);
    for (const auto& field : options.fields()) config[field.config_key()] = field.to_json();
    return config;
}

io::AdapterFiles AdaptedModel::files(const std::string& base) const {
    io::AdapterFiles files;
    files.config = config_for(*method_, *options_, base);
    adapter_->to_config(files.config);
    for (const auto& parameter : parameters_.all())
        if (parameter.saved) files.tensors.emplace_back(parameter.name, parameter.value.detach());
    adapter_->to_tensors(files.tensors);
    for (auto& [name, tensor] : files.tensors) name = file_name({.name = name});
    return files;
}

io::AdapterFiles AdaptedModel::files_as(const Method& method, MethodOptions& options,
                                        const io::NamedTensors& tensors, const std::string& base) const {
    io::AdapterFiles files;
    files.config = config_for(method, options, base);
    files.tensors = tensors;
    for (const auto& parameter : parameters_.all())
        if (parameter.saved && parameter.group == nn::ParameterGroup::head)
            files.tensors.emplace_back(parameter.name, parameter.value.detach());
    for (auto& [name, tensor] : files.tensors) name = file_name({.name = name});
    return files;
}

std::vector<std::pair<std::string, at::Tensor>> AdaptedModel::merged_tensors(at::ScalarType dtype) {
    const at::NoGradGuard no_grad;
    const auto wide = model_->dtype() == at::kDouble ? at::kDouble : at::kFloat;
    bind(nn::Pass{data::Batch{}});
    std::map<std::string, at::Tensor> tensors;
    for (const auto& [name, slots] : model_->tensors()) tensors[name] = slots.front()->detach();
    for (const nn::Site* site : sites_) {
        const auto& bias = site->linear.bias;
        const auto [weight, shifted] = nn::merged(site->forms, site->linear.weight.detach().to(wide),
                                                  bias.defined() ? bias.detach().to(wide) : bias);
        tensors[site->name() + ".weight"] = weight;
        if (shifted.defined()) tensors[site->name() + ".bias"] = shifted;
    }
    std::vector<std::pair<std::string, at::Tensor>> result;
    for (const auto& [name, tensor] : tensors) result.emplace_back(name, tensor.to(dtype).contiguous());
    return result;
}

}  // namespace ether::methods
