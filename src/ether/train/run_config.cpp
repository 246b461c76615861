#include "ether/train/run_config.h"

#include <algorithm>
#include <array>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <sstream>

#include "ether/core/error.h"
#include "ether/core/near_name.h"
#include "ether/core/utf8.h"
#include "ether/methods/registry.h"
#include "ether/tasks/task.h"
#include "ether/train/schedule.h"

namespace ether::train {
namespace {

std::vector<std::string> known_methods() {
    std::vector<std::string> names;
    for (const auto& method : methods::all_methods()) names.emplace_back(method.name);
    return names;
}

// "ether+ 0.005, ether 0.005, ..."
std::string default_rates() {
    std::string text;
    for (const auto& method : methods::all_methods())
        text += fmt::format("{}{} {:g}", text.empty() ? "" : ", ", method.name, method.learning_rate);
    return text;
}

std::string summaries() {
    std::string text;
    for (const auto& method : methods::all_methods())
        text += fmt::format("{}{}: {}", text.empty() ? "" : "; ", method.name, method.summary);
    return text;
}

// "all-linear; red: mlp-output; ...": what no --targets stands for.
std::string own_targets() {
    const std::string most = methods::Targets().modules;
    std::string text = most;
    for (const auto& method : methods::all_methods())
        if (method.takes_sites && method.targets != most)
            text += fmt::format("; {}: {}", method.name, method.targets);
    return text;
}

}  // namespace

Fields RunConfig::fields() {
    Fields fields = {
        {.name = "model",
         .value = &model,
         .help = "model folder as downloaded, or org/name in the Hugging Face cache"},
        {.name = "task", .value = &task, .help = "what to learn", .choices = tasks::kTaskNames},
        {.name = "data", .value = &data, .help = "training examples: .jsonl, .json, .csv, .tsv or .txt"},
        {.name = "eval-data", .value = &eval_data, .help = "examples to judge by; the best adapter is kept"},
        {.name = "out",
         .value = &out,
         .help = "run folder: adapter, run.toml, metrics.jsonl, events, checkpoints/"},
    };
    for (auto& field : columns.fields()) fields.push_back(std::move(field));
    const Fields training = {
        {.name = "adapter",
         .value = &adapter,
         .help = "adapter to train on, of ours or PEFT's: a folder, or org/name in the cache; its method, "
                 "options "
                 "and layers stay as they are, and so does its head if the labels are the same"},
        {.name = "method",
         .value = &method,
         .help = "how to adapt. " + summaries(),
         .choices = known_methods()},
        {.name = "targets",
         .value = &targets,
         .help = "layers to adapt: all-linear (with a BERT's pooler, as in PEFT), attention, query-value, "
                 "mlp, mlp-output (each block's last), names that end a module path (query,value; for lora "
                 "also the word embeddings, embed_tokens), or a regular expression of whole paths; where "
                 "none are named, the method's own: " +
                 own_targets(),
         .joined = true},
        {.name = "and",
         .value = &further,
         .help = "further methods on top of it, each with --targets, --exclude, --layers, --lr and options "
                 "of its own: "
                 "\"red --targets mlp-output; lora --rank 4\""},
        {.name = "exclude",
         .value = &exclude,
         .help = "layers to leave out: names or a regular expression",
         .joined = true},
        {.name = "layers", .value = &layers, .help = "blocks to adapt, e.g. 0-3,5; empty: all"},
        {.name = "modules-to-save",
         .value = &modules_to_save,
         .help = "modules to train whole, besides a new head"},
        {.name = "lr",
         .value = &lr,
         .help = "learning rate; not given: the method's own: " + default_rates(),
         .low = 1e-12,
         .high = 1e3},
        {.name = "head-lr",
         .value = &head_lr,
         .help = "learning rate of the classification head; --method head trains all that it trains at --lr",
         .low = 0,
         .high = 1e3},
        {.name = "module-lr",
         .value = &module_lr,
         .help = "learning rate of other modules that are trained whole (--modules-to-save)",
         .low = 0,
         .high = 1e3},
        {.name = "weight-decay",
         .value = &weight_decay,
         .help = "decoupled weight decay of whole modules and full fine-tuning",
         .low = 0,
         .high = 1},
        {.name = "adapter-weight-decay",
         .value = &adapter_weight_decay,
         .help =
             "likewise of what a method trains; a reflection's vectors count by their direction alone, so "
             "that shorter ones only turn faster",
         .low = 0,
         .high = 1},
        {.name = "model-dropout",
         .value = &model_dropout,
         .help = "dropout of the model's own activations and attention, whatever its config.json says (for a "
                 "BERT 0.1): so few trained values need none",
         .low = 0,
         .high = 0.99},
        {.name = "schedule",
         .value = &schedule,
         .help = "learning rate after the warm-up",
         .choices = kScheduleNames},
        {.name = "warmup",
         .value = &warmup,
         .help = "share of all steps in which the learning rate rises from 0",
         .low = 0,
         .high = 1},
        {.name = "clip",
         .value = &clip,
         .help = "largest norm of the gradient; 0: no clipping",
         .low = 0,
         .high = 1e9},
        {.name = "epochs", .value = &epochs, .help = "times each example is seen", .low = 0.001, .high = 1e6},
        {.name = "max-steps",
         .value = &max_steps,
         .help = "end after so many steps; 0: by epochs",
         .low = 0,
         .high = 1e9 - 1},
        {.name = "batch", .value = &batch, .help = "examples in a batch", .low = 1, .high = 1e6},
        {.name = "accumulate",
         .value = &accumulate,
         .help = "batches a step, as if they were one",
         .low = 1,
         .high = 1e6},
        {.name = "max-length",
         .value = &max_length,
         .help = "tokens of a text; 0: 512, or the model's positions if fewer",
         .low = 0,
         .high = 1e9},
        {.name = "bucketing", .value = &bucketing, .help = "batches of examples of like length"},
        {.name = "eval-every",
         .value = &eval_every,
         .help = "steps between evaluations; 0: at each epoch's end",
         .low = 0,
         .high = 1e12},
        {.name = "eval-batch",
         .value = &eval_batch,
         .help = "examples in an evaluation batch",
         .low = 1,
         .high = 1e6},
        {.name = "patience",
         .value = &patience,
         .help = "stop after so many evaluations without a better one; 0: never",
         .low = 0,
         .high = 1e9},
        {.name = "save-every",
         .value = &save_every,
         .help = "steps between checkpoints; 0: at each epoch's end",
         .low = 0,
         .high = 1e12},
        {.name = "keep", .value = &keep, .help = "checkpoints to keep", .low = 1, .high = 1e6},
        {.name = "seed",
         .value = &seed,
         .help = "of starting values, order and dropout",
         .low = 0,
         .high = 9e15},
        {.name = "threads", .value = &threads, .help = "0: all cores", .low = 0, .high = 1024},
        {.name = "device", .value = &device, .help = "auto: a GPU if there is one; cpu, cuda or cuda:1"},
        {.name = "dtype",
         .value = &dtype,
         .help = "of weights and activations; auto: as stored",
         .choices = {"auto", "f32", "bf16"}},
        {.name = "memory",
         .value = &memory,
         .help =
             "low: a batch passes in pieces (of 256 tokens or 64 a thread, on a GPU 2048, but at least of "
             "one example), and only one of them has activations at a time: the same result but for "
             "rounding, some 10% slower, more for methods that make a change as large as its weight; "
             "fast: at once; auto: fast where that fits, else low, and that is said",
         .choices = {"auto", "fast", "low"}},
        {.name = "checkpoint-activations",
         .value = &checkpoint_activations,
         .help =
             "keep of each block its input and its last product alone, and compute the rest again in "
             "backward: the same result in a fraction of the memory, for about a third more time; where "
             "a run does not fit with --memory low either, as many blocks as it takes do it by themselves"},
        {.name = "force",
         .value = &force,
         .help = "go on where the memory estimate says the run cannot fit, or where --adapter was trained on "
                 "another base model"},
    };
    fields.insert(fields.end(), training.begin(), training.end());
    return fields;
}

void RunConfig::check() {
    for (const auto& field : fields()) field.check();
    for (const auto& [name, value] : {std::pair{"model", model}, {"data", data}, {"out", out}})
        if (value.empty()) fail(ErrorKind::usage, "--{} is missing; see ether train --help", name);
    if (patience > 0 && eval_data.empty())
        fail(ErrorKind::usage, "--patience: early stopping needs --eval-data");
    if (adapter.empty()) return;
    const auto refuse = [](const std::string& option) {
        fail(ErrorKind::usage, "--{}: an --adapter that is trained on keeps its own; leave it out", option);
    };
    for (const auto& [name, value] :
         {std::pair{"targets", targets}, {"exclude", exclude}, {"layers", layers}, {"and", further}})
        if (!value.empty()) refuse(name);
    if (!modules_to_save.empty()) refuse("modules-to-save");
    if (!method_options.empty()) refuse(method_options.begin()->first);
}

namespace {

// One of --and's methods: a name, and options as on the command line. A flag alone is true.
methods::PartConfig part_of(const std::string& text) {
    std::istringstream stream(text);
    methods::PartConfig part{.method = ""};
    part.targets = {.modules = ""};
    stream >> part.method;
    std::vector<std::pair<std::string, std::string>> given;
    for (std::string word; stream >> word;) {
        if (word.starts_with("--")) {
            const auto equals = word.find('=');
            given.emplace_back(word.substr(2, equals - 2),
                               equals == std::string::npos ? "" : word.substr(equals + 1));
        } else if (given.empty() || !given.back().second.empty()) {
            fail(ErrorKind::usage,
                 "--and: found \"{}\" in \"{}\", expected a method's name and options: \"lora --rank 4\"",
                 word, text);
        } else {
            given.back().second = word;
        }
    }
    double rate = 0;
    const Fields own = {{.name = "targets", .value = &part.targets.modules, .help = ""},
                        {.name = "exclude", .value = &part.targets.exclude, .help = ""},
                        {.name = "layers", .value = &part.targets.layers, .help = ""},
                        {.name = "lr", .value = &rate, .help = "", .low = 1e-12, .high = 1e3}};
    for (const auto& [name, value] : given) {
        const auto* field = find_field(own, name);
        if (field && value.empty()) fail(ErrorKind::usage, "--and {}: --{} has no value", part.method, name);
        if (field)
            with_prefix("--and " + part.method, [&] { field->set(value); });
        else if (value.empty() && name.starts_with("no-"))
            part.options[name.substr(3)] = "false";
        else
            part.options[name] = value.empty() ? "true" : value;
    }
    const auto known = known_methods();
    if (std::find(known.begin(), known.end(), part.method) == known.end())
        fail(ErrorKind::usage, "--and: \"{}\" is not a method, expected one of {}{}", part.method,
             fmt::join(known, ", "), did_you_mean(part.method, known));
    part.lr = rate > 0 ? rate : methods::method_named(part.method).learning_rate;
    return part;
}

// --and's methods, each without the blanks around it.
std::vector<std::string> part_texts(const std::string& text) {
    constexpr const char* kBlanks = " \t";
    std::vector<std::string> parts;
    std::istringstream stream(text);
    for (std::string part; std::getline(stream, part, ';');)
        if (const auto first = part.find_first_not_of(kBlanks); first != std::string::npos)
            parts.push_back(part.substr(first, part.find_last_not_of(kBlanks) + 1 - first));
    return parts;
}

std::vector<methods::PartConfig> parts_of(const std::string& text) {
    std::vector<methods::PartConfig> parts;
    for (const auto& part : part_texts(text)) parts.push_back(part_of(part));
    if (parts.empty() && !text.empty())
        fail(ErrorKind::usage, "--and: \"{}\" names no method, expected for example \"lora --rank 4\"", text);
    return parts;
}

// The rates of --and's methods, too, are written down: another version's may differ.
std::string with_rates(const std::string& text) {
    auto parts = part_texts(text);
    for (auto& part : parts) {
        std::replace(part.begin(), part.end(), '\t', ' ');
        if (part.find("--lr") == std::string::npos) part += fmt::format(" --lr {:g}", *part_of(part).lr);
    }
    return fmt::format("{}", fmt::join(parts, "; "));
}

}  // namespace

methods::AdapterConfig RunConfig::adapter_config() const {
    return {.method = method,
            .options = method_options,
            .targets = {.modules = targets, .exclude = exclude, .layers = layers},
            .modules_to_save = modules_to_save,
            .seed = static_cast<uint64_t>(seed),
            .also = parts_of(further)};
}

double RunConfig::learning_rate() const { return lr ? *lr : methods::method_named(method).learning_rate; }

at::ScalarType dtype_named(const std::string& name) {
    if (name == "f32") return at::kFloat;
    if (name == "bf16") return at::kBFloat16;
    ETHER_ASSERT(name == "auto");
    return at::ScalarType::Undefined;
}

namespace {

// Text in literal quotes, in which a regular expression's backslashes are themselves, if it has none itself.
std::string quoted(const Field& field) {
    const auto text = field.text();
    if (find_invalid_utf8(text) != std::string::npos ||
        std::any_of(text.begin(), text.end(), [](unsigned char c) { return c < 0x20 || c == 0x7f; }))
        fail(ErrorKind::usage,
             "--{}: a value that has control characters, or is not UTF-8, cannot be kept in run.toml; rename "
             "{}",
             field.name, printable(text));
    if (text.find('\'') == std::string::npos) return fmt::format("'{}'", text);
    std::string escaped;
    for (const char c : text) {
        if (c == '"' || c == '\\') escaped += '\\';
        escaped += c;
    }
    return fmt::format("\"{}\"", escaped);
}

// Every setting of a run with what stands for absent ones, and the options of a new adapter's method.
void for_each_setting(RunConfig& config, const std::function<void(const Field&)>& visit) {
    config.lr = config.learning_rate();
    config.further = with_rates(config.further);
    for (const auto& field : config.fields()) visit(field);
    if (!config.adapter.empty()) return;
    const auto options = methods::method_named(config.method).options();
    for (const auto& field : options->fields()) {
        if (const auto chosen = config.method_options.find(field.name); chosen != config.method_options.end())
            field.set(chosen->second);
        visit(field);
    }
}

}  // namespace

std::string from_anywhere(const std::string& path) {
    std::error_code ignored;  // whoever opens it says what is wrong
    if (path.empty() || !std::filesystem::exists(path, ignored)) return path;
    return std::filesystem::absolute(path).lexically_normal().string();
}

std::map<std::string, std::string> deciding_settings(RunConfig config) {
    // Paths, what only says where and when, and columns: what is in them is compared itself.
    constexpr std::array kOthers = {"model",        "data",        "eval-data",   "out",
                                    "adapter",      "text-column", "pair-column", "quoting",
                                    "label-column", "threads",     "force",       "eval-batch",
                                    "patience",     "save-every",  "keep",        "checkpoint-activations",
                                    "device",       "memory"};
    config.batch *= config.accumulate;  // a step's examples, however they are cut
    config.accumulate = 1;
    std::map<std::string, std::string> settings;
    for_each_setting(config, [&](const Field& field) {
        if (std::find(kOthers.begin(), kOthers.end(), field.name) == kOthers.end())
            settings[field.name] = field.text();
    });
    return settings;
}

std::string to_toml(RunConfig config) {
    for (auto* path : {&config.model, &config.data, &config.eval_data, &config.adapter, &config.out})
        *path = from_anywhere(*path);
    std::string text =
        "# ether train --config run.toml repeats this run; ether train --resume continues it\n";
    for_each_setting(config, [&](const Field& field) {
        if (field.text().empty()) return;  // absent means empty
        const auto value = field.to_json();
        text += fmt::format("{} = {}\n", field.name,
                            value.is_string() || value.is_object() ? quoted(field) : value.dump());
    });
    return text;
}

}  // namespace ether::train
