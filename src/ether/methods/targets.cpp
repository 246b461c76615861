#include "ether/methods/targets.h"

#include <algorithm>
#include <charconv>
#include <set>

#include "ether/core/error.h"
#include "ether/core/near_name.h"
#include "ether/core/options.h"
#include "ether/core/utf8.h"

namespace ether::methods {
namespace {

constexpr int64_t kAttentionSites = 4;  // q, k, v, o

bool fits_keyword(const std::string& keyword, const nn::Site& site, const nn::Model& model) {
    if (keyword == kAllLinear) return !site.is_output;
    const int64_t place = place_in_block(site, model);
    if (keyword == "attention") return place >= 0 && place < kAttentionSites;
    if (keyword == "query-value") return place == 0 || place == 2;
    if (keyword == "mlp") return place >= kAttentionSites;
    const auto next = static_cast<size_t>(site.index) + 1;  // mlp-output
    return place >= 0 && (next == model.sites().size() || model.sites()[next].layer != site.layer);
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
    const bool keyword =
        words.typed ? is_keyword(expression) : option == words.modules && expression == kAllLinear;
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

bool is_keyword(const std::string& expression) {
    return expression == kAllLinear || expression == "attention" || expression == "query-value" ||
           expression == "mlp" || expression == "mlp-output";
}

int64_t place_in_block(const nn::Site& site, const nn::Model& model) {
    if (site.layer < 0) return -1;
    int64_t first = site.index;
    while (first > 0 && model.sites()[static_cast<size_t>(first) - 1].layer == site.layer) --first;
    return site.index - first;
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
    if (const auto& table = model.embeddings().module();
        words.typed && words.embeddings && !targets.layers.empty() && is_name_list(targets.modules) &&
        wanted(nullptr, table) && !excluded(nullptr, table))
        fail(ErrorKind::usage, "{}: \"{}\" lies in no block, so {} leaves it out; name it without that",
             words.modules, table, words.layers);
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

}  // namespace ether::methods
