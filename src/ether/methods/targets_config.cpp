// PEFT's words for the choice of layers.
#include <nlohmann/json.hpp>
#include <set>

#include "ether/core/error.h"
#include "ether/core/json.h"
#include "ether/core/options.h"
#include "ether/core/utf8.h"
#include "ether/methods/targets.h"

namespace ether::methods {

void name_layers(const std::vector<nn::Site*>& sites, nlohmann::json& config) {
    if (config.erase("layers_to_transform") > 0) to_config(sites, config);
}

void to_config(const std::vector<nn::Site*>& sites, nlohmann::json& config) {
    auto& paths = config["target_modules"] = nlohmann::json::array();
    for (const auto* site : sites) paths.push_back(site->name());
}

void to_config(const Targets& targets, const Selection& selection, const nn::Model& model,
               nlohmann::json& config) {
    const bool whole_path =
        std::any_of(model.sites().begin(), model.sites().end(),
                    [&](const nn::Site& site) { return is_listed(site.name(), targets.modules); });
    // PEFT knows no keywords but all-linear, which it saves as paths itself; its expressions are Python's,
    // and match modules that are no linear layers, too; some of its methods know no exclude_modules; and it
    // asks for no layers where a name is a whole path.
    const bool names = is_name_list(targets.modules) && !is_keyword(targets.modules);
    if (!names || !targets.exclude.empty() || (!targets.layers.empty() && whole_path)) {
        to_config(selection.sites, config);
        if (selection.embeddings) config["target_modules"].push_back(model.embeddings().module());
        return;
    }
    config["target_modules"] = split_list(targets.modules);
    if (targets.layers.empty()) return;
    auto& layers = config["layers_to_transform"] = nlohmann::json::array();
    std::set<int64_t> numbers;
    for (const auto* site : selection.sites) numbers.insert(site->layer);
    for (int64_t number : numbers) layers.push_back(number);
}

// What a file chooses by, as one expression. For PEFT a string is an expression, even if it looks like a
// name, and a list holds names: one with other characters than a path's fits none of ours.
std::string expression_of(const nlohmann::json& value, const char* key) {
    if (value.is_string()) {
        const auto text = value.get<std::string>();
        return text.empty() || text == kAllLinear || !is_name_list(text) ? text : fmt::format("(?:{})", text);
    }
    if (!value.is_array())
        fail(ErrorKind::adapter,
             "adapter_config.json: key \"{}\" is {}, expected a list of names or a string", key,
             printable(value.dump(), kShownPattern));
    std::vector<std::string> names;
    for (const auto& name : value) {
        if (!name.is_string())
            fail(ErrorKind::adapter, "adapter_config.json: key \"{}\" holds {}, expected names", key,
                 printable(name.dump(), kShownPattern));
        const auto text = name.get<std::string>();
        if (text.find(',') == std::string::npos && is_name_list(text)) names.push_back(text);
    }
    return names.empty() && !value.empty() ? "(?:)" : fmt::format("{}", fmt::join(names, ","));
}

Targets targets_from_config(const nlohmann::json& config) {
    Targets targets;
    if (config.contains("target_modules") && !config["target_modules"].is_null())
        targets.modules = expression_of(config["target_modules"], "target_modules");
    if (config.contains("exclude_modules") && !config["exclude_modules"].is_null())
        targets.exclude = expression_of(config["exclude_modules"], "exclude_modules");
    if (!config.contains("layers_to_transform") || config["layers_to_transform"].is_null()) return targets;
    const auto& layers = config["layers_to_transform"];
    for (const auto& layer : layers.is_array() ? layers : nlohmann::json::array({layers})) {
        if (!is_int64(layer))
            fail(ErrorKind::adapter,
                 "adapter_config.json: key \"layers_to_transform\" holds {}, expected block numbers",
                 printable(layer.dump(), kShownPattern));
        if (layer.get<int64_t>() < 0) continue;  // PEFT finds none
        targets.layers += fmt::format("{}{}", targets.layers.empty() ? "" : ",", layer.get<int64_t>());
    }
    if (targets.layers.empty() && !layers.empty())
        fail(ErrorKind::adapter,
             "adapter_config.json: key \"layers_to_transform\" is {}, expected block numbers",
             printable(layers.dump(), kShownPattern));
    return targets;
}

}  // namespace ether::methods
