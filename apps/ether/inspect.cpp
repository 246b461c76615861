#include <cstdio>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>

#include "command_line.h"
#include "ether/core/error.h"
#include "ether/core/utf8.h"
#include "ether/io/adapter_folder.h"
#include "ether/io/hub_cache.h"
#include "ether/methods/adapted_model.h"
#include "ether/methods/registry.h"
#include "ether/models/registry.h"
#include "verb.h"

namespace ether::app {
namespace {

using nlohmann::ordered_json;

std::string shape_text(const ordered_json& shape) {
    std::string text;
    for (const auto& size : shape)
        text += fmt::format("{}{}", text.empty() ? "" : " x ", size.get<int64_t>());
    return text;
}

constexpr size_t kShownText = 10000;  // bytes
constexpr size_t kShownEntries = 8;   // of a list

constexpr int64_t kNewClasses = 2;  // of a head where the model has none

std::unique_ptr<nn::Model> load_any_head(const io::Checkpoint& checkpoint) {
    const bool classifier =
        models::stored_classes(checkpoint) || !models::architecture_of(checkpoint).language_model_class;
    return models::load_model(checkpoint,
                              {.head = classifier ? nn::Head::sequence_classification : nn::Head::causal_lm,
                               .classes = kNewClasses});
}

// Values of a head that the files lack, so that it was drawn.
int64_t new_head_parameters(const nn::Model& model) {
    int64_t count = 0;
    for (const auto& module : model.new_modules())
        for (const auto& name : model.module_tensors(module))
            count += model.tensors().at(name).front()->numel();
    return count;
}

ordered_json describe_model(const std::filesystem::path& folder) {
    const auto checkpoint = io::Checkpoint::open(folder);
    const auto model = load_any_head(checkpoint);
    const int64_t drawn = new_head_parameters(*model);
    ordered_json object = {{"kind", "model"},
                           {"architecture", model->shape().architecture},
                           {"parameters", model->parameter_count() - drawn},
                           {"new_head_parameters", drawn},
                           {"fingerprint", checkpoint.fingerprint()},
                           {"layers", model->shape().layers},
                           {"hidden_size", model->shape().hidden_size},
                           {"heads", model->shape().heads},
                           {"kv_heads", model->shape().kv_heads},
                           {"vocabulary", model->shape().vocab_size},
                           {"positions", model->shape().max_positions}};
    std::map<std::string, std::string> stored;  // dtype by name without the base model's prefix
    for (const auto& name : checkpoint.names()) stored[name] = io::dtype_name(checkpoint.info(name).dtype);
    const auto& prefix = model->shape().prefix;
    for (const auto& site : model->sites()) {
        const auto name = site.name() + ".weight";
        auto dtype = stored.find(name);
        if (dtype == stored.end() && name.starts_with(prefix))
            dtype = stored.find(name.substr(prefix.size()));
        object["sites"].push_back({{"name", site.name()},
                                   {"shape", {site.linear.out(), site.linear.in()}},
                                   {"dtype", dtype == stored.end() ? "new or tied" : dtype->second},
                                   {"bias", site.linear.bias.defined()}});
    }
    for (const auto& method : methods::all_methods()) {
        try {
            methods::AdapterConfig config;
            config.method = method.name;
            const methods::AdaptedModel adapted(load_any_head(checkpoint), config);
            object["methods"][method.name] = adapted.method_parameters();
        } catch (const Error& error) {  // e.g. the default number of blocks does not divide a width
            object["methods"][method.name] = error.what();
        }
    }
    return object;
}

ordered_json describe_adapter(const std::filesystem::path& folder) {
    const auto files = io::read_adapter(folder);
    ordered_json object = {{"kind", "adapter"}};
    int64_t values = 0;  // integers are places of values
    for (const auto& [name, tensor] : files.tensors) {
        if (tensor.is_floating_point()) values += tensor.numel();
        object["tensors"].push_back({{"name", name},
                                     {"shape", tensor.sizes().vec()},
                                     {"dtype", io::dtype_name(tensor.scalar_type())}});
    }
    object["values"] = values;
    object["config"] = files.config;
    if (files.ether) object["ether"] = *files.ether;
    return object;
}

void print_model(const ordered_json& object) {
    const auto drawn = object["new_head_parameters"].get<int64_t>();
    fmt::print(
        "{}: {} parameters{}, {} blocks, width {}, {} heads ({} for keys), vocabulary {}, {} "
        "positions\nfingerprint {}\n\n",
        object["architecture"].get<std::string>(), object["parameters"].get<int64_t>(),
        drawn ? fmt::format(" (and {} of a new head for {} classes)", drawn, kNewClasses) : "",
        object["layers"].get<int64_t>(), object["hidden_size"].get<int64_t>(), object["heads"].get<int64_t>(),
        object["kv_heads"].get<int64_t>(), object["vocabulary"].get<int64_t>(),
        object["positions"].get<int64_t>(), object["fingerprint"].get<std::string>());
    for (const auto& site : object["sites"])
        fmt::print("{:<56} {:>14}  {}{}\n", site["name"].get<std::string>(), shape_text(site["shape"]),
                   site["dtype"].get<std::string>(), site["bias"].get<bool>() ? ", bias" : "");
    fmt::print("\nadapter parameters with each method's defaults:\n");
    for (const auto& [method, count] : object["methods"].items())
        fmt::print("  {:<10} {}\n", method, count.is_string() ? count.get<std::string>() : count.dump());
}

void print_adapter(const ordered_json& object) {
    for (const auto& [key, value] : object["config"].items())
        if (value.is_array() && value.size() > kShownEntries)
            fmt::print("{} = {} entries (--json prints them)\n", printable(key, kShownValue), value.size());
        else if (!value.is_null())
            fmt::print("{} = {}\n", printable(key, kShownValue), printable(value.dump(), kShownText));
    if (object.contains("ether")) {
        const auto told = [&](const char* key) {
            const auto value = object["ether"].value(key, ordered_json());
            return value.is_null()     ? "?"
                   : value.is_string() ? printable(value.get<std::string>(), kShownValue)
                                       : printable(value.dump(), kShownValue);
        };
        fmt::print("trained for: {}\nbase fingerprint: {}\n", told("task"), told("base_fingerprint"));
        if (object["ether"].contains("labels"))
            fmt::print("labels: {}\n", printable(object["ether"]["labels"].dump(), kShownText));
    } else {
        fmt::print("no ether.json: nothing tells which base model and labels belong to it\n");
    }
    fmt::print("\n{} values\n", object["values"].get<int64_t>());
    for (const auto& tensor : object["tensors"])
        fmt::print("{:<72} {:>12}  {}\n", printable(tensor["name"].get<std::string>(), kShownValue),
                   shape_text(tensor["shape"]), tensor["dtype"].get<std::string>());
}

}  // namespace

int inspect_main(int argc, char** argv) {
    std::string folder;
    bool json = false;
    CommandLine line("inspect",
                     "Shows what a model or adapter folder holds: architecture, linear layers by name, "
                     "shapes, dtypes and what "
                     "each method would train; or an adapter's settings and tensors. Needs no tokenizer.",
                     "ether inspect DIR");
    line.add_positional(
        {.name = "folder", .value = &folder, .help = "model folder, org/name, adapter folder or run folder"});
    line.add({{.name = "json", .value = &json, .help = "print one JSON object"}});
    if (!line.parse(argc, argv)) return 0;

    const auto path = io::resolve_model(folder);
    const auto has = [&](const char* name) { return io::has_entry(path / name); };
    const bool adapter = has(io::kAdapterConfigFile) || has(io::kRunFile) || has(io::kRunStateFile);
    const auto object = adapter ? describe_adapter(path) : describe_model(path);
    if (json)
        std::printf("%s\n", object.dump().c_str());
    else if (adapter)
        print_adapter(object);
    else
        print_model(object);
    return 0;
}

}  // namespace ether::app
