#include "ether/methods/adapter_config.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "ether/core/error.h"
#include "ether/core/near_name.h"
#include "ether/core/utf8.h"
#include "ether/io/adapter_folder.h"
#include "ether/io/json_reader.h"

namespace ether::methods {
namespace {

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
                                           "layers_pattern",
                                           "fan_in_fan_out"};  // PEFT ignores it at linear layers

// What PEFT can do and this version cannot: a name that looks like one of ours would be a wrong hint.
const std::set<std::string> kPeftFeatures = {"alpha_pattern",
                                             "proportional_parameters",
                                             "alora_invocation_tokens",
                                             "corda_config",
                                             "ensure_weight_tying",
                                             "layer_replication",
                                             "kasa_config",
                                             "loftq_config",
                                             "lora_bias",
                                             "lora_ga_config",
                                             "megatron_config",
                                             "monteclora_config",
                                             "rank_pattern",
                                             "target_parameters",
                                             "trainable_token_indices",
                                             "use_bdlora",
                                             "use_qalora",
                                             "velora_config"};

}  // namespace

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
                 printable(value.dump(), kShownValue), method.peft_type,
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
            field.from_json(config[field.config_key()], io::kAdapterConfigFile);
    return options;
}

bool is_common(const std::string& key) { return kCommonKeys.contains(key); }

std::string peft_type_of(const nlohmann::json& config) {
    return io::JsonObject(config, io::kAdapterConfigFile).get<std::string>("peft_type");
}

std::vector<std::string> modules_from_config(const nlohmann::json& config, const nn::Model& model) {
    const auto modules = config.value("modules_to_save", nlohmann::json());
    if (says_nothing(modules)) return {};
    if (!modules.is_array())
        fail(ErrorKind::adapter,
             "adapter_config.json: key \"modules_to_save\" is {}, expected a list of names", modules.dump());
    std::vector<std::string> result;
    for (const auto& module : modules) {
        if (!module.is_string())
            fail(ErrorKind::adapter, "adapter_config.json: key \"modules_to_save\" holds {}, expected names",
                 module.dump());
        const auto name = module.get<std::string>();
        const bool known_head = name == "classifier" || name == "score";
        if (!known_head || !model.module_tensors(name).empty()) result.push_back(name);
    }
    return result;
}

}  // namespace ether::methods
