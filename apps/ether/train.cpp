#include <csignal>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "command_line.h"
#include "console.h"
#include "ether/core/error.h"
#include "ether/core/interrupt.h"
#include "ether/core/shell.h"
#include "ether/io/adapter_folder.h"
#include "ether/train/learning_curve.h"
#include "ether/train/metrics_log.h"
#include "ether/train/run_setup.h"
#include "ether/train/tensorboard.h"
#include "ether/train/trainer.h"
#include "verb.h"

namespace ether::app {
namespace {

void report(const train::RunResult& result, const train::RunConfig& config, bool json) {
    const auto resume = "ether train --resume " + shell_word(config.out);
    if (json) {
        nlohmann::json object = {{"out", config.out},
                                 {"steps", result.steps},
                                 {"loss", result.final_loss},
                                 {"seconds", result.seconds},
                                 {"interrupted", result.interrupted_by != 0},
                                 {"stopped_early", result.stopped_early}};
        if (result.best_score) {
            object["best"] = {{"step", result.best_step}, {result.best_score_name, *result.best_score}};
        }
        if (result.interrupted_by) object["resume"] = resume;
        std::printf("%s\n", object.dump().c_str());
        if (!result.interrupted_by) finish_output();
        return;
    }
    // The run is saved, whether anybody reads this or not: a terminal may have been closed.
    std::string text;
    if (result.interrupted_by) {
        text = fmt::format("stopped at step {} and saved; go on with:\n  {}\n", result.steps, resume);
    } else {
        text = fmt::format("{} steps in {}; ", result.steps, duration_text(result.seconds));
        if (result.best_score)
            text += fmt::format("best {} {:.4f} at step {}{}; ", result.best_score_name, *result.best_score,
                                result.best_step,
                                result.stopped_early ? ", then no better one: stopped early" : "");
        text += fmt::format("adapter in {}\n", config.out);
    }
    std::fputs(text.c_str(), stdout);
}

}  // namespace

int train_main(int argc, char** argv) {
    train::RunConfig config;
    std::string resume;
    bool json = false;
    const Fields own = {
        {.name = "resume",
         .value = &resume,
         .help = "run folder to continue where it stopped; takes no other options but --threads, --device, "
                 "--memory and --json"},
        {.name = "json", .value = &json, .help = "print the result as one JSON object"},
    };
    CommandLine line("train", "Fine-tunes a model on a file of examples.",
                     "ether train --model DIR --task classify --data train.jsonl --eval-data dev.jsonl "
                     "--method ether+ --out runs/a");
    line.add(own);
    line.add(config.fields());
    line.add_method_options();
    if (!line.parse(argc, argv)) return 0;
    CommandLine saved_line("train", "", "");
    if (!resume.empty()) {
        const auto refuse = [&](const std::string& name) {
            fail(ErrorKind::usage,
                 "--resume goes on with the run's own settings, so --{} cannot be given; start a new run "
                 "with --config {}/run.toml and another --out",
                 name, resume);
        };
        for (const auto& field : config.fields())
            if (line.given(field.name) && field.name != "threads" && field.name != "device" &&
                field.name != "memory")
                refuse(field.name);
        for (const auto& [name, value] : line.method_options()) refuse(name);
        const auto threads = config.threads;
        const auto device = config.device, memory = config.memory;
        const auto saved = (std::filesystem::path(resume) / io::kRunFile).string();
        if (!io::has_entry(saved))
            fail(ErrorKind::file, "{}: there is no run to resume ({} is missing)", resume, io::kRunFile);
        io::read_text_file(saved);  // a pipe there is refused; --config may be one
        config = {};
        saved_line.add(config.fields());
        saved_line.add_method_options();
        std::vector<std::string> words = {"train", "--config", saved, "--out", resume};
        std::vector<char*> arguments;
        for (auto& word : words) arguments.push_back(word.data());
        saved_line.parse(static_cast<int>(arguments.size()), arguments.data());
        if (config.model.empty() || config.data.empty())
            fail(ErrorKind::format,
                 "{}: names no model or no data, so the run cannot go on; put back the file that it wrote",
                 saved);
        config.method_options = saved_line.method_options();
        if (line.given("threads")) config.threads = threads;
        if (line.given("device")) config.device = device;
        if (line.given("memory")) config.memory = memory;
    } else {
        config.method_options = line.method_options();
    }
    if (!config.adapter.empty() && resume.empty()) train::take_method(config, line.given("method"));
    install_interrupt_handlers();  // before reading models and data, so that a signal is never lost
    return (resume.empty() ? line : saved_line).with_origins([&] {
        ConsoleProgress progress;
        train::MetricsLog metrics;
        train::TensorBoardLog events;
        train::LearningCurve curve;
        train::Trainer trainer(config, !resume.empty(), {&progress, &metrics, &events, &curve});
        const auto result = trainer.run();
        report(result, config, json);
        return result.interrupted_by ? 128 + result.interrupted_by : 0;
    });
}

}  // namespace ether::app
