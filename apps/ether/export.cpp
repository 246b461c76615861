#include <cstdio>
#include <nlohmann/json.hpp>

#include "command_line.h"
#include "comparison.h"
#include "ether/export/lora.h"
#include "ether/io/atomic.h"
#include "ether/train/run_config.h"
#include "loading.h"
#include "verb.h"

namespace ether::app {

int export_main(int argc, char** argv) {
    LoadingOptions loading;
    exporting::LoraExport lora;
    std::string to = "lora", out;
    bool json = false;
    CommandLine line("export",
                     "Writes the adapter as one of another kind that more software reads: a PEFT LoRA of the "
                     "same function, checked against the adapter's own logits.",
                     "ether export --model DIR --adapter runs/a --to lora --out lora/");
    line.add(loading.fields(), {"model", "adapter"});
    line.add(
        {{.name = "to", .value = &to, .help = "kind of the adapter to write", .choices = {"lora"}},
         {.name = "out", .value = &out, .help = "folder to write; must not exist"},
         {.name = "max-rank",
          .value = &lora.max_rank,
          .help = "write the nearest LoRA of at most this rank; 0: of the rank that is exactly the adapter",
          .low = 0,
          .high = 1 << 16},
         {.name = "svd",
          .value = &lora.svd,
          .help = "approximate changes that are not low-rank, too; needs --max-rank"},
         {.name = "json", .value = &json, .help = "print one JSON object"}},
        {"out"});
    if (!line.parse(argc, argv)) return 0;
    io::remove_temporaries_on_signals();

    lora.base = train::from_anywhere(loading.model);
    loading.device = "cpu";  // where the result is checked
    auto loaded = loading.load();
    const auto report = exporting::export_lora(loaded, out, lora);
    for (const auto& warning : report.warnings) fmt::print(stderr, "warning: {}\n", warning);
    if (json) {
        nlohmann::json object = {{"out", out},
                                 {"bytes", report.bytes},
                                 {"layers", report.layers},
                                 {"rank", report.rank},
                                 {"exact_rank", report.exact_rank},
                                 {"exact", report.exact()},
                                 {"error", report.error},
                                 {"largest_error", report.largest_error},
                                 {"largest_error_layer", report.largest_error_layer}};
        add_comparison(report, object);
        std::printf("%s\n", object.dump().c_str());
        finish_output();
        return 0;
    }
    const auto loss = report.exact()
                          ? std::string()
                          : fmt::format(" it loses {:.3g} of the weights' change, at most {:.3g} ({});",
                                        report.error, report.largest_error, report.largest_error_layer);
    fmt::print("{}: a LoRA of rank {}{} on {} layers, {:.1f} MB;{} {}\n", out, report.rank,
               report.exact() ? "" : fmt::format(" ({} would be exact)", report.exact_rank), report.layers,
               static_cast<double>(report.bytes) / 1e6, loss,
               comparison_text(report, "; a larger --max-rank retains more"));
    return 0;
}

}  // namespace ether::app
