#include <array>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "command_line.h"
#include "ether/core/error.h"
#include "ether/core/near_name.h"
#include "ether/core/parallel.h"
#include "ether/eval/forms_bench.h"
#include "ether/eval/mixed_batch_bench.h"
#include "ether/eval/reflect_bench.h"
#include "ether/eval/train_step_bench.h"
#include "ether/io/hub_cache.h"
#include "ether/ops/device.h"
#include "ether/train/run_config.h"
#include "verb.h"

namespace ether::app {
namespace {

// What all measurements ask for.
struct Common {
    std::string model, dtype = "auto", device = "auto";
    int64_t threads = 0;
    bool json = false;

    void add(CommandLine& line, methods::AdapterConfig& adapter, const char* method_help) {
        add_model(line);
        line.add({
            {.name = "method", .value = &adapter.method, .help = method_help},
            {.name = "targets", .value = &adapter.targets.modules, .help = "layers to adapt"},
            {.name = "device", .value = &device, .help = "cpu, cuda, cuda:1, or auto: a GPU if there is one"},
        });
        line.add_method_options();
    }
    void add_model(CommandLine& line) {
        line.add({{.name = "model",
                   .value = &model,
                   .help = "model folder, or org/name in the Hugging Face cache"}},
                 {"model"});
        line.add({
            {.name = "dtype",
             .value = &dtype,
             .help = "of weights and activations",
             .choices = {"auto", "f32", "bf16"}},
            {.name = "threads", .value = &threads, .help = "0: all cores", .low = 0, .high = 1024},
            {.name = "json", .value = &json, .help = "print one JSON object"},
        });
    }
    io::Checkpoint open(const CommandLine& line, methods::AdapterConfig& adapter,
                        eval::BenchInput& input) const {
        adapter.options = line.method_options();
        return open(input);
    }
    io::Checkpoint open(eval::BenchInput& input) const {
        input.dtype = train::dtype_named(dtype);
        input.device = ops::device_named(device);
        if (threads > 0) set_num_threads(static_cast<int>(threads));
        return io::Checkpoint::open(io::resolve_model(model));
    }
};

// What measurements of training steps ask for.
void add_steps(CommandLine& line, eval::BenchInput& input, int64_t* steps) {
    line.add({
        {.name = "batch", .value = &input.batch, .help = "sequences", .low = 1, .high = 1e6},
        {.name = "tokens", .value = &input.tokens, .help = "of each sequence", .low = 2, .high = 1e7},
        {.name = "steps",
         .value = steps,
         .help = "measured steps, after one that warms up",
         .low = 1,
         .high = 1e6},
    });
}

void print(const nlohmann::json& json) { std::printf("%s\n", json.dump().c_str()); }

int train_step_main(int argc, char** argv) {
    eval::TrainStepOptions options;
    options.adapter.method = "ether";
    Common common;
    CommandLine line("bench train-step",
                     "Measures training steps on random tokens beside this machine's GEMM limit at the "
                     "model's shapes. Needs no tokenizer and no data.",
                     "ether bench train-step --model DIR --method ether --targets all-linear --batch 2 "
                     "--tokens 256 --json");
    common.add(line, options.adapter, "how to adapt; none: frozen, the same backward");
    add_steps(line, options.input, &options.steps);
    line.add({
        {.name = "checkpoint-activations",
         .value = &options.checkpoint_activations,
         .help =
             "keep of each block its input and last product alone, and compute the rest again in backward"},
        {.name = "memory",
         .value = &options.memory,
         .help = "low: in pieces of a few hundred tokens, as in ether train",
         .choices = {"fast", "low"}},
    });
    if (!line.parse(argc, argv)) return 0;
    const auto result = eval::bench_train_step(common.open(line, options.adapter, options.input), options);
    const double share = result.tokens_per_second / result.gemm_limit_tokens_per_second;
    if (common.json)
        print({{"method", options.adapter.method},
               {"median_seconds", result.median_seconds},
               {"tokens_per_second", result.tokens_per_second},
               {"peak_rss_bytes", result.peak_rss_bytes},
               {"peak_device_bytes", result.peak_device_bytes},
               {"trainable_parameters", result.trainable_parameters},
               {"flops_per_token", result.flops_per_token},
               {"gemm", result.gemm},
               {"gemm_flops_per_second", result.gemm_flops_per_second},
               {"gemm_limit_tokens_per_second", result.gemm_limit_tokens_per_second}});
    else
        fmt::print(
            "{}: {:.0f} tokens/s ({:.3f} s a step, {} trained values, peak {:.2f} GB), {:.3f} of the limit "
            "of {:.0f} "
            "tokens/s ({}, {:.0f} GFLOP/s)\n",
            options.adapter.method, result.tokens_per_second, result.median_seconds,
            result.trainable_parameters,
            static_cast<double>(result.peak_device_bytes ? result.peak_device_bytes : result.peak_rss_bytes) /
                1e9,
            share, result.gemm_limit_tokens_per_second, result.gemm, result.gemm_flops_per_second / 1e9);
    return 0;
}

int mixed_batch_main(int argc, char** argv) {
    eval::MixedBatchOptions options;
    options.adapter.method = "ether";
    Common common;
    CommandLine line(
        "bench mixed-batch",
        "Measures a forward pass in which every row of the batch has an adapter of its own, beside the "
        "base model's and the time to read all adapters once. Needs no tokenizer and no data.",
        "ether bench mixed-batch --model DIR --method ether+ --batch 128 --tokens 1 --json");
    common.add(line, options.adapter, "what each row's adapter is");
    line.add({
        {.name = "batch", .value = &options.input.batch, .help = "rows", .low = 1, .high = 1e6},
        {.name = "tokens", .value = &options.input.tokens, .help = "of each row", .low = 1, .high = 1e7},
        {.name = "repeats",
         .value = &options.repeats,
         .help = "measured passes, after one that warms up",
         .low = 1,
         .high = 1e6},
    });
    if (!line.parse(argc, argv)) return 0;
    const auto result = eval::bench_mixed_batch(common.open(line, options.adapter, options.input), options);
    const double ratio = result.mixed_seconds / result.base_seconds,
                 reading = result.read_seconds() / result.base_seconds;
    if (common.json)
        print({{"method", options.adapter.method},
               {"base_seconds", result.base_seconds},
               {"mixed_seconds", result.mixed_seconds},
               {"adapter_bytes", result.adapter_bytes},
               {"read_bytes_per_second", result.bytes_per_second},
               {"read_seconds", result.read_seconds()}});
    else
        fmt::print(
            "{}: {} adapters in one batch take {:.3f} of the base model's time ({:.1f} and {:.1f} ms); "
            "reading their {:.1f} MB once takes {:.3f} of it ({:.1f} GB/s)\n",
            options.adapter.method, options.input.batch, ratio, 1e3 * result.mixed_seconds,
            1e3 * result.base_seconds, static_cast<double>(result.adapter_bytes) / 1e6, reading,
            result.bytes_per_second / 1e9);
    return 0;
}

int forms_main(int argc, char** argv) {
    eval::FormsBenchOptions options;
    Common common;
    CommandLine line(
        "bench forms",
        "Measures a training step with every form that an adapter may have, beside ETHER's: 1.05 "
        "of that, and the form's own operations at 0.7 of the machine's best rate, are allowed. "
        "Needs no tokenizer and no data.",
        "ether bench forms --model DIR --batch 2 --tokens 256");
    common.add_model(line);
    line.add({{.name = "targets", .value = &options.targets, .help = "layers to adapt"}});
    add_steps(line, options.input, &options.steps);
    if (!line.parse(argc, argv)) return 0;
    const auto result = eval::bench_forms(common.open(options.input), options, [](const std::string& method) {
        fmt::print(stderr, "{}\n", method);
    });
    if (common.json) {
        auto rows = nlohmann::json::array();
        for (const auto& row : result.rows)
            rows.push_back({{"form", row.form},
                            {"method", row.method},
                            {"median_seconds", row.seconds},
                            {"own_flops", row.own_flops},
                            {"ratio", row.ratio},
                            {"allowed", row.allowed}});
        print({{"ether_seconds", result.ether_seconds},
               {"gemm_flops_per_second", result.gemm_flops_per_second},
               {"forms", rows}});
        return 0;
    }
    for (const auto& row : result.rows)
        fmt::print("{:<30} {:<22} {:6.3f} s  {:.2f} of ETHER's step, {:.2f} allowed{}\n", row.form,
                   row.method, row.seconds, row.ratio, row.allowed,
                   row.ratio > row.allowed ? " (above)" : "");
    return 0;
}

int reflect_main(int argc, char** argv) {
    eval::ReflectOptions options;
    std::string dtype = "f32", device = "auto";
    int64_t threads = 0;
    bool json = false;
    CommandLine line("bench reflect",
                     "Measures reflections alone, forward and backward, as shares of the rate at which the "
                     "device copies memory. Needs no model.",
                     "ether bench reflect --width 4096 --blocks 4 --tokens 16384 --dtype bf16");
    line.add({
        {.name = "width", .value = &options.width, .help = "features of a token", .low = 1, .high = 1e6},
        {.name = "blocks",
         .value = &options.blocks,
         .help = "pieces of a token, each reflected",
         .low = 1,
         .high = 1e6},
        {.name = "tokens", .value = &options.tokens, .help = "of the batch", .low = 1, .high = 1e9},
        {.name = "plus", .value = &options.plus, .help = "ETHER+'s two terms instead of ETHER's one"},
        {.name = "dtype", .value = &dtype, .help = "of activations", .choices = {"f32", "bf16"}},
        {.name = "threads", .value = &threads, .help = "0: all cores", .low = 0, .high = 1024},
        {.name = "device", .value = &device, .help = "cpu, cuda, cuda:1, or auto: a GPU if there is one"},
        {.name = "repeats",
         .value = &options.repeats,
         .help = "measured runs, after one that warms up",
         .low = 1,
         .high = 1e6},
        {.name = "json", .value = &json, .help = "print one JSON object"},
    });
    if (!line.parse(argc, argv)) return 0;
    options.dtype = train::dtype_named(dtype);
    options.device = ops::device_named(device);
    if (threads > 0) set_num_threads(static_cast<int>(threads));
    const auto result = eval::bench_reflect(options);
    if (json)
        print({{"bytes_per_second", result.bytes_per_second},
               {"forward", result.forward},
               {"backward_frozen", result.backward_frozen},
               {"backward", result.backward}});
    else
        fmt::print(
            "forward {:.2f}, backward {:.2f}, with the vectors' gradients {:.2f} of the {:.0f} GB/s of a "
            "copy\n",
            result.forward, result.backward_frozen, result.backward, result.bytes_per_second / 1e9);
    return 0;
}

constexpr const char* kHelp =
    "Measures what this machine does with a model; random tokens, no tokenizer, no data.\n\n"
    "  ether bench train-step   training steps beside the limit of the machine's products\n"
    "  ether bench forms        a training step with every form of adapter beside ETHER's\n"
    "  ether bench mixed-batch  a forward pass with another adapter in every row\n"
    "  ether bench reflect      reflections alone beside the rate of copying memory\n\n"
    "ether bench train-step --help explains one, with an example.\n";

}  // namespace

int bench_main(int argc, char** argv) {
    using Measurement = std::pair<const char*, int (*)(int, char**)>;
    constexpr std::array kMeasurements = {
        Measurement{"train-step", train_step_main}, Measurement{"forms", forms_main},
        Measurement{"mixed-batch", mixed_batch_main}, Measurement{"reflect", reflect_main}};
    const std::string name = argc >= 2 ? argv[1] : "";
    if (name == "--help" || name == "-h") {
        std::printf("%s", kHelp);
        return 0;
    }
    std::vector<std::string> names;
    for (const auto& [known, run] : kMeasurements) {
        if (name == known) return run(argc - 1, argv + 1);
        names.emplace_back(known);
    }
    fail(ErrorKind::usage, "ether bench needs a measurement: {}{}; see ether bench --help",
         fmt::join(names, ", "), name.empty() ? "" : did_you_mean(name, names));
}

}  // namespace ether::app
