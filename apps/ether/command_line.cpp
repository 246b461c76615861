#include "command_line.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <set>

#include "ether/core/error.h"
#include "ether/core/near_name.h"
#include "ether/core/utf8.h"
#include "ether/io/file.h"
#include "ether/io/toml.h"
#include "ether/methods/registry.h"
#include "ether/train/run_config.h"

namespace ether::app {
namespace {

std::string range_text(const Field& field) {
    if (!field.choices.empty()) return fmt::format(" [{}]", fmt::join(field.choices, "|"));
    return "";
}

std::string help_text(const Field& field) {
    const auto initial = field.text();
    return field.help + range_text(field) + (initial.empty() ? "" : " (default " + initial + ")");
}

// Its text is several values, joined by commas.
bool is_list(const Field& field) {
    return std::holds_alternative<std::vector<std::string>*>(field.value) ||
           std::holds_alternative<std::vector<int64_t>*>(field.value) ||
           std::holds_alternative<NumbersByName*>(field.value);
}
std::string joined(const std::vector<std::string>& values) {
    return fmt::format("{}", fmt::join(values, ","));
}

// What transformers and PEFT call some of our options; no letters would lead from one to the other.
constexpr std::pair<const char*, const char*> kNamesElsewhere[] = {
    {"learning-rate", "lr"},
    {"num-train-epochs", "epochs"},
    {"per-device-train-batch-size", "batch"},
    {"per-device-eval-batch-size", "eval-batch"},
    {"gradient-accumulation-steps", "accumulate"},
    {"gradient-checkpointing", "checkpoint-activations"},
    {"max-seq-length", "max-length"},
    {"max-grad-norm", "clip"},
    {"lr-scheduler-type", "schedule"},
    {"warmup-ratio", "warmup"},
    {"model-name-or-path", "model"},
    {"train-file", "data"},
    {"validation-file", "eval-data"},
    {"output-dir", "out"},
    {"target-modules", "targets"},
    {"exclude-modules", "exclude"},
    {"layers-to-transform", "layers"},
    {"lora-r", "rank"},
    {"lora-alpha", "alpha"},
    {"lora-dropout", "dropout"},
    {"use-rslora", "rslora"},
};

// Ends a message about an unknown option; what may be meant is written with `dashes` in front.
std::string near_option(std::string name, const std::vector<std::string>& known, const char* dashes) {
    name.erase(0, name.find_first_not_of('-'));
    std::replace(name.begin(), name.end(), '_', '-');
    for (const auto& [elsewhere, here] : kNamesElsewhere)
        if (name == elsewhere && std::find(known.begin(), known.end(), here) != known.end()) name = here;
    const auto near = near_name(name, known);
    return near.empty() ? "" : fmt::format("; did you mean \"{}{}\"?", dashes, near);
}

bool is_of_training(const std::string& key) {
    train::RunConfig config;
    if (find_field(config.fields(), key)) return true;
    return std::ranges::any_of(methods::all_methods(), [&](const methods::Method& method) {
        return find_field(method.options()->fields(), key) != nullptr;
    });
}

}  // namespace

CommandLine::CommandLine(std::string verb, std::string description, std::string example)
    : app_(std::make_unique<CLI::App>(std::move(description), "ether " + verb)), verb_(std::move(verb)) {
    app_->footer("Example:\n  " + example);
    app_->get_formatter()->column_width(30);
    app_->get_formatter()->label("TEXT", "");
    // The first option, so that its values are there when those of the others are taken.
    app_->add_option_function<std::string>(
        "--config", [this](const std::string& file) { take_from(file); },
        "TOML file of options by these names; the command line wins");
}

CommandLine::~CommandLine() = default;

void CommandLine::add_one(const Field& field, bool required) {
    auto& values = *(values_[field.name] = std::make_unique<std::vector<std::string>>());
    CLI::Option* option = nullptr;
    if (std::holds_alternative<bool*>(field.value)) {
        const bool initially = *std::get<bool*>(field.value);
        option = app_->add_flag("--" + field.name + (initially ? ",!--no-" + field.name : ""), values,
                                help_text(field))
                     ->take_last();
    } else {
        option = app_->add_option("--" + field.name, values, help_text(field));
        if (is_list(field))
            option->delimiter(',')->type_name("NAMES");
        else
            (field.joined ? option->expected(1, 1000)
                          : option->expected(1)->allow_extra_args(false)->take_last())
                ->type_name(std::holds_alternative<std::string*>(field.value) ? "TEXT" : "NUMBER");
    }
    option->required(required);
    fields_.push_back(field);
}

void CommandLine::add(const Fields& fields, const std::vector<std::string>& required) {
    for (const auto& field : fields)
        add_one(field, std::find(required.begin(), required.end(), field.name) != required.end());
}

void CommandLine::add_positional(const Field& field) {
    auto& values = *(values_[field.name] = std::make_unique<std::vector<std::string>>());
    app_->add_option(field.name, values, field.help)
        ->required()
        ->expected(1)
        ->allow_extra_args(false)
        ->type_name("TEXT");
    fields_.push_back(field);
}

void CommandLine::add_method_options() {
    // Methods that share an option's meaning and default share its help.
    std::map<std::string, std::vector<std::pair<std::string, std::string>>>
        options;                        // name -> (methods, help)
    std::map<std::string, bool> flags;  // name -> whether it is on by default
    std::set<std::string> lists;
    for (const auto& method : methods::all_methods()) {
        const auto method_options = method.options();
        for (const auto& field : method_options->fields()) {
            auto& variants = options[field.name];
            if (const auto* const* flag = std::get_if<bool*>(&field.value)) flags[field.name] |= **flag;
            if (is_list(field)) lists.insert(field.name);
            const auto help = help_text(field);
            const auto same = std::find_if(variants.begin(), variants.end(),
                                           [&](const auto& variant) { return variant.second == help; });
            if (same == variants.end())
                variants.emplace_back(method.name, help);
            else
                same->first += fmt::format(", {}", method.name);
        }
    }
    for (const auto& [name, variants] : options) {
        std::string text;
        for (const auto& [names, help] : variants)
            text += fmt::format("{}{}: {}", text.empty() ? "" : "; ", names, help);
        auto& values = *(values_[name] = std::make_unique<std::vector<std::string>>());
        const auto flag = flags.find(name);
        auto* option =
            flag != flags.end()
                ? app_->add_flag("--" + name + (flag->second ? ",!--no-" + name : ""), values, text)
                : app_->add_option("--" + name, values, text)->type_name("VALUE");
        if (lists.contains(name))
            option->delimiter(',');
        else if (flag == flags.end())
            option->expected(1)->allow_extra_args(false)->take_last();
        else
            option->take_last();
        option->group("Options of methods");
        method_option_names_.push_back(name);
    }
}

void CommandLine::take_from(const std::string& file) {
    std::vector<std::string> known, of_training;
    for (const auto& [name, values] : values_) known.push_back(name);
    for (const auto& entry : io::parse_toml(io::read_input(file), file)) {
        auto* option = app_->get_option_no_throw("--" + entry.key);
        if (!option) option = app_->get_option_no_throw(entry.key);  // a positional one
        if (!option || !values_.contains(entry.key)) {
            if (!is_of_training(entry.key))
                fail(ErrorKind::usage, "{}:{}: unknown key \"{}\"{}; ether {} --help lists all options", file,
                     entry.line, printable(entry.key), near_option(entry.key, known, ""), verb_);
            of_training.push_back(entry.key);
            continue;
        }
        if (entry.values.empty() && !option->get_delimiter())
            fail(ErrorKind::usage, "{}:{}: \"{}\" takes one value, found an empty list", file, entry.line,
                 entry.key);
        if (static_cast<int>(entry.values.size()) > std::max(1, option->get_items_expected_max()))
            fail(ErrorKind::usage, "{}:{}: \"{}\" takes one value, found a list of {}", file, entry.line,
                 entry.key, entry.values.size());
        if (!option->empty()) continue;  // given on the command line
        origins_[entry.key] = fmt::format("{}:{}", file, entry.line);
        for (const auto& value : entry.values)
            option->add_result(option->get_expected_min() == 0 ? option->get_flag_value(entry.key, value)
                                                               : value);
    }
    // A run's own file names training data and a run folder: nothing that another verb should take in
    // silence.
    if (!of_training.empty())
        fail(ErrorKind::usage, "{}: these keys are ether train's alone: {}; leave them out for ether {}{}",
             file, fmt::join(of_training, ", "), verb_,
             values_.contains("adapter") ? ", which takes a run by --adapter and its folder" : "");
}

void CommandLine::refuse(const std::string& word) const {
    if (!word.starts_with('-'))
        fail(ErrorKind::usage,
             "\"{}\" belongs to no option: each takes one value, and switches none; see ether {} --help",
             printable(word), verb_);
    std::vector<std::string> known{"config", "help"};
    for (const auto& [name, values] : values_) known.push_back(name);
    const auto name = word.substr(0, word.find('='));
    fail(ErrorKind::usage, "unknown option {}{}; ether {} --help lists all", printable(name),
         near_option(name, known, "--"), verb_);
}

bool CommandLine::parse(int argc, char** argv) {
    try {
        app_->parse(argc, argv);
    } catch (const CLI::CallForHelp&) {
        std::fputs(app_->help().c_str(), stdout);
        return false;
    } catch (const CLI::ParseError& error) {
        // What is required may be missing because its name was mistyped.
        if (const auto left = app_->remaining(); !left.empty()) refuse(left.front());
        std::string text = error.what();
        std::replace(text.begin(), text.end(), '\n', ' ');
        fail(ErrorKind::usage, "{}; see ether {} --help", text, verb_);
    }
    with_origins([this] {
        for (const auto& field : fields_)
            if (const auto& values = *values_.at(field.name); !values.empty()) field.set(joined(values));
        return 0;
    });
    return true;
}

int CommandLine::with_origins(const std::function<int()>& body) const {
    try {
        return body();
    } catch (const Error& error) {
        const std::string told = error.what();
        if (!told.starts_with("--")) throw;
        const auto origin = origins_.find(told.substr(2, told.find_first_of(": ") - 2));
        if (origin == origins_.end()) throw;
        fail(error.kind(), "{}: {}", origin->second, told);
    }
}

bool CommandLine::given(const std::string& name) const {
    const auto found = values_.find(name);
    return found != values_.end() && !found->second->empty();
}

std::map<std::string, std::string> CommandLine::method_options() const {
    std::map<std::string, std::string> options;
    for (const auto& name : method_option_names_)
        if (given(name)) options[name] = joined(*values_.at(name));
    return options;
}

}  // namespace ether::app
