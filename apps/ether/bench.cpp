#include <cstdio>
#include <nlohmann/json.hpp>
#include <string_view>

#include "command_line.h"
#include "ether/core/error.h"
#include "ether/core/parallel.h"
#include "ether/eval/train_step_bench.h"
#include "ether/io/hub_cache.h"
#include "ether/train/run_config.h"
#include "verb.h"

namespace ether::app {

int bench_main(int argc, char** argv) {
    eval::BenchOptions options;
    std::string model, dtype = "auto";
    int64_t threads = 0;
    bool json = false;
    options.adapter.method = "ether";
    CommandLine line("bench train-step",
                     "Measures training steps on random tokens beside this machine's GEMM limit at the "
                     "model's shapes. Needs no "
                     "tokenizer and no data.",
                     "ether bench train-step --model DIR --method ether --targets all-linear --batch 2 "
                     "--tokens 256 --json");
    if (argc >= 2 && std::string_view(argv[1]) == "train-step") {
        ++argv;
        --argc;
    } else if (argc < 2 || (std::string_view(argv[1]) != "--help" && std::string_view(argv[1]) != "-h")) {
        fail(ErrorKind::usage, "ether bench needs a measurement: train-step; see ether bench --help");
    }
    line.add(
        {{.name = "model", .value = &model, .help = "model folder, or org/name in the Hugging Face cache"}},
        {"model"});
    line.add({
        {.name = "method",
         .value = &options.adapter.method,
         .help = "how to adapt; none: frozen, the same backward"},
        {.name = "targets", .value = &options.adapter.targets.modules, .help = "layers to adapt"},
        {.name = "batch", .value = &options.batch, .help = "sequences", .low = 1, .high = 1e6},
        {.name = "tokens", .value = &options.tokens, .help = "of each sequence", .low = 2, .high = 1e7},
        {.name = "steps",
         .value = &options.steps,
         .help = "measured steps, after one that warms up",
         .low = 1,
         .high = 1e6},
        {.name = "dtype",
         .value = &dtype,
         .help = "of weights and activations",
         .choices = {"auto", "f32", "bf16"}},
        {.name = "checkpoint-activations",
         .value = &options.checkpoint_activations,
         .help = "keep the input of each block alone and compute the rest again in backward"},
        {.name = "threads", .value = &threads, .help = "0: all cores", .low = 0, .high = 4096},
        {.name = "json", .value = &json, .help = "print one JSON object"},
    });
    line.add_method_options();
    if (!line.parse(argc, argv)) return 0;
    options.adapter.options = line.method_options();
    options.dtype = train::dtype_named(dtype);
    if (threads > 0) set_num_threads(static_cast<int>(threads));

    const auto result = eval::bench_train_step(io::Checkpoint::open(io::resolve_model(model)), options);
    const double share = result.tokens_per_second / result.gemm_limit_tokens_per_second;
    if (json)
        std::printf("%s\n",
                    nlohmann::json({{"method", options.adapter.method},
                                    {"median_seconds", result.median_seconds},
                                    {"tokens_per_second", result.tokens_per_second},
                                    {"peak_rss_bytes", result.peak_rss_bytes},
                                    {"trainable_parameters", result.trainable_parameters},
                                    {"flops_per_token", result.flops_per_token},
                                    {"gemm", result.gemm},
                                    {"gemm_flops_per_second", result.gemm_flops_per_second},
                                    {"gemm_limit_tokens_per_second", result.gemm_limit_tokens_per_second}})
                        .dump()
                        .c_str());
    else
        fmt::print(
            "{}: {:.0f} tokens/s ({:.3f} s a step, {} trained values, peak {:.2f} GB), {:.3f} of the limit "
            "of {:.0f} "
            "tokens/s ({}, {:.0f} GFLOP/s)\n",
            options.adapter.method, result.tokens_per_second, result.median_seconds,
            result.trainable_parameters, static_cast<double>(result.peak_rss_bytes) / 1e9, share,
            result.gemm_limit_tokens_per_second, result.gemm, result.gemm_flops_per_second / 1e9);
    return 0;
}

}  // namespace ether::app
