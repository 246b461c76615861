#include "ether/methods/targets.h"

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>
#include <regex>
#include <set>

#include "ether/core/error.h"
#include "ether/core/json.h"
#include "ether/core/near_name.h"
#include "ether/core/options.h"
#include "ether/core/utf8.h"

namespace ether::methods {
namespace {

constexpr size_t kLongestPattern = 1000;
constexpr int64_t kAttentionSites = 4;  // q, k, v, o

constexpr const char* kAll = "all-linear";

bool is_keyword(const std::string& expression) {
    return expression == kAll || expression == "attention" || expression == "query-value" ||
           expression == "mlp" || expression == "mlp-output";
}

bool fits_keyword(const std::string& keyword, const nn::Site& site, const nn::Model& model) {
    if (keyword == kAll) return !site.is_output;
    const int64_t place = place_in_block(site, model);
    if (keyword == "attention") return place >= 0 && place < kAttentionSites;
    if (keyword == "query-value") return place == 0 || place == 2;
    if (keyword == "mlp") return place >= kAttentionSites;
    const auto next = static_cast<size_t>(site.index) + 1;  // mlp-output
    return place >= 0 && (next == model.sites().size() || model.sites()[next].layer != site.layer);
}

bool ends_path(const std::string& path, const std::string& name) {
    return path == name || (path.ends_with(name) && path[path.size() - name.size() - 1] == '.');
}

// An expression that PEFT reads as Python does, in ECMAScript's words: \A and \Z for a text's ends, groups
// with names, and {,n}.
std::string from_python(const std::string& expression) {
    std::string result;
    for (size_t i = 0; i < expression.size(); ++i) {
        const auto rest = std::string_view(expression).substr(i);
        if (rest.starts_with("\\A") || rest.starts_with("\\Z")) {
            result += rest[1] == 'A' ? '^' : '$';
            ++i;
        } else if (rest.starts_with('\\')) {
            result += rest.substr(0, 2);
            ++i;
        } else if (const auto end = rest.find('>'); rest.starts_with("(?P<") && end != std::string::npos) {
            result += "(?:";
            i += end;
        } else if (rest.starts_with("{,")) {
            result += "{0";
        } else {
            result += rest.front();
        }
    }
    return result;
}

// Expressions come from downloaded files as well: libstdc++ compiles them by recursion and, but for its
// polynomial mode (which has no back-references), searches for a match in exponential time.
std::regex compiled(const std::string& expression, const char* option, const char* form = "{}") {
    if (expression.size() > kLongestPattern)
        fail(ErrorKind::usage, "{}: the regular expression has {} characters, more than {}; name the layers",
             option, expression.size(), kLongestPattern);
    try {
        // Classes like [[:digit:]], which Python takes for something else.
        if (expression.find("[[:") != std::string::npos)
            throw std::regex_error(std::regex_constants::error_ctype);
        return std::regex(fmt::format(fmt::runtime(form), from_python(expression)),
                          std::regex::ECMAScript | std::regex::nosubs | std::regex_constants::__polynomial);
    } catch (const std::regex_error& error) {
        fail(ErrorKind::usage,
             "{}: \"{}\" is not a regular expression, or has what is not read here (flags, look-behind, "
             "back-references): {}",
             option, printable(expression, kShownPattern), error.what());
    }
}

std::string last_part(const std::string& path) { return path.substr(path.rfind('.') + 1); }

// Names that a person may have meant.
std::string last_parts(const nn::Model& model) {
    std::set<std::string> parts;
    for (const auto& site : model.sites()) parts.insert(last_part(site.name()));
    return fmt::format("{}", fmt::join(parts, ", "));
}

// Chooses among sites and, as no site (null), the table of embeddings.
using Matcher = std::function<bool(const nn::Site*, const std::string& path)>;

// option: of the words. must_match: what matches nothing is an error.
Matcher matcher(const std::string& expression, const nn::Model& model, const TargetWords& words,
                const char* option, bool must_match) {
    const bool keyword = words.typed ? is_keyword(expression) : option == words.modules && expression == kAll;
    if (keyword)
        return [&model, expression](const nn::Site* site, const std::string&) {
            return site && fits_keyword(expression, *site, model);
        };
    std::vector<std::string> known;
    for (const auto& site : model.sites()) known.push_back(path_then(site.name(), model, words.headless));
    if (words.embeddings) known.push_back(path_then(model.embeddings().module(), model, words.headless));
    const auto filter = path_filter(expression, option);
    if (!is_name_list(expression) && must_match && std::none_of(known.begin(), known.end(), filter))
        fail(ErrorKind::usage, "{}: \"{}\" matches no linear layer of this {} model{}; layers here end in {}",
             option, printable(expression, kShownPattern), model.shape().architecture,
             did_you_mean(expression, known), last_parts(model));
    if (is_name_list(expression) && words.typed)
        for (const auto& name : split_list(expression))
            if (std::none_of(known.begin(), known.end(),
                             [&](const auto& path) { return ends_path(path, name); }))
                fail(ErrorKind::usage, "{}: no linear layer is named \"{}\"{}; names here: {}", option,
                     printable(name, kShownPattern),
                     ends_path(model.embeddings().module(), name)
                         ? ", which is the table of embeddings: lora alone adapts that"
                         : "",
                     last_parts(model));
    return [filter](const nn::Site*, const std::string& path) { return filter(path); };
}

// Whether one of the names in a list is the whole path.
bool is_listed(const std::string& path, const std::string& expression) {
    if (!is_name_list(expression)) return false;
    const auto names = split_list(expression);
    return std::find(names.begin(), names.end(), path) != names.end();
}

int64_t parse_layer(const std::string& text, const std::string& layers, const char* option) {
    int64_t value = -1;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc() || end != text.data() + text.size() || value < 0)
        fail(ErrorKind::usage, "{}: \"{}\" is not a list of block numbers and ranges like 0-3,5", option,
             printable(layers, kShownPattern));
    return value;
}

std::set<int64_t> parse_layers(const std::string& layers, int64_t count, const TargetWords& words) {
    const char* option = words.layers;
    std::set<int64_t> result;
    for (const auto& part : split_list(layers)) {
        const auto dash = part.find('-');
        const int64_t first = parse_layer(part.substr(0, dash), layers, option);
        const int64_t last =
            dash == std::string::npos ? first : parse_layer(part.substr(dash + 1), layers, option);
        if (!words.typed && first >= count) continue;
        if (last < first || last >= count)
            fail(ErrorKind::usage, "{}: {} is not within 0-{}, the model's blocks", option, part, count - 1);
        for (int64_t layer = first; layer <= last; ++layer) result.insert(layer);
    }
    return result;
}

}  // namespace

int64_t place_in_block(const nn::Site& site, const nn::Model& model) {
    if (site.layer < 0) return -1;
    int64_t first = site.index;
    while (first > 0 && model.sites()[static_cast<size_t>(first) - 1].layer == site.layer) --first;
    return site.index - first;
}

// It holds nothing but names and commas.
bool is_name_list(const std::string& expression) {
    return std::all_of(expression.begin(), expression.end(),
                       [](unsigned char c) {
                           return std::isalnum(c) || c == '_' || c == '.' || c == '-' || c == ',' || c == ' ';
                       }) &&
           expression.find(".*") == std::string::npos;
}

PathFilter path_filter(const std::string& expression, const char* option) {
    if (is_name_list(expression))
        return [names = split_list(expression)](const std::string& path) {
            return std::any_of(names.begin(), names.end(),
                               [&](const auto& name) { return ends_path(path, name); });
        };
    return [pattern = compiled(expression, option)](const std::string& path) {
        return std::regex_match(path, pattern);
    };
}

Selection select(const Targets& targets, nn::Model& model, const TargetWords& words) {
    const auto wanted = matcher(targets.modules, model, words, words.modules, true);
    const auto excluded = targets.exclude.empty()
                              ? [](const nn::Site*, const std::string&) { return false; }
                              : matcher(targets.exclude, model, words, words.exclude, words.typed);
    const auto layers = parse_layers(targets.layers, model.shape().layers, words);
    auto chooses = [&](const nn::Site* site, const std::string& module) {
        if (words.headless && !module.starts_with(model.shape().prefix)) return false;  // the head's own
        const auto path = path_then(module, model, words.headless);
        const bool layer_fits = targets.layers.empty() || layers.contains(site ? site->layer : -1) ||
                                (!words.typed && is_listed(path, targets.modules));
        return layer_fits && wanted(site, path) && !excluded(site, path);
    };
    Selection selection;
    for (auto& site : model.sites())
        if (chooses(&site, site.name())) selection.sites.push_back(&site);
    selection.embeddings = words.embeddings && chooses(nullptr, model.embeddings().module());
    if (selection.sites.empty() && !selection.embeddings)
        fail(ErrorKind::usage, "{}: \"{}\" leaves no linear layer{}{}; layers here end in {}", words.modules,
             printable(targets.modules, kShownPattern),
             targets.exclude.empty() ? "" : fmt::format(" after {}", words.exclude),
             targets.layers.empty() ? "" : fmt::format(" in {} {}", words.layers, targets.layers),
             last_parts(model));
    return selection;
}

PathFilter path_end(const std::string& expression, const char* option, const char* form) {
    const bool is_name = expression.find_first_of(",.") == std::string::npos && is_name_list(expression);
    if (is_name) return [expression](const std::string& path) { return ends_path(path, expression); };
    const auto pattern = compiled(expression, option, form);
    return [pattern](const std::string& path) { return std::regex_match(path, pattern); };
}

std::string path_then(const std::string& path, const nn::Model& model, bool headless) {
    const auto& prefix = model.shape().prefix;
    return headless && path.starts_with(prefix) ? path.substr(prefix.size()) : path;
}

std::vector<std::string> module_tensors(const std::vector<std::string>& modules, const nn::Model& model,
                                        const TargetWords& words) {
    std::vector<std::string> tensors;
    for (const auto& module : modules) {
        std::vector<std::string> paths, found;
        for (const auto& [name, slots] : model.tensors())
            for (auto dot = name.rfind('.'); dot != std::string::npos && dot > 0;
                 dot = name.rfind('.', dot - 1)) {
                paths.push_back(name.substr(0, dot));  // the tensor's module, and those that contain it
                if (paths.back().ends_with(module)) {  // as PEFT: "norm" means "input_layernorm", too
                    found.push_back(name);
                    break;
                }
            }
        if (found.empty()) {
            std::vector<std::string> names = paths;
            for (const auto& path : paths) names.push_back(last_part(path));
            fail(ErrorKind::usage, "{}: the model has no module \"{}\"{}", words.modules_to_save,
                 printable(module, kShownPattern), did_you_mean(module, names));
        }
        for (const auto& name : found)  // PEFT writes lists in which modules repeat
            if (std::find(tensors.begin(), tensors.end(), name) == tensors.end()) tensors.push_back(name);
    }
    return tensors;
}

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
        return text.empty() || text == kAll || !is_name_list(text) ? text : fmt::format("(?:{})", text);
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
