#include "ether/export/merge.h"

#include <cstdio>
#include <nlohmann/json.hpp>

#include "command_line.h"
#include "ether/train/run_config.h"
#include "loading.h"
#include "verb.h"

namespace ether::app {

int merge_main(int argc, char** argv) {
    LoadingOptions loading;
    std::string out;
    bool json = false;
    CommandLine line("merge",
                     "Writes a model folder with the adapter multiplied into the weights, checked against "
                     "the adapter's own "
                     "logits. transformers and everything else that reads the base model reads it.",
                     "ether merge --model DIR --adapter runs/a --out merged/");
    line.add(loading.fields(), {"model", "adapter"});
    line.add({{.name = "out", .value = &out, .help = "folder to write; must not exist"},
              {.name = "json", .value = &json, .help = "print one JSON object"}},
             {"out"});
    if (!line.parse(argc, argv)) return 0;

    auto loaded = loading.load();
    const auto report = exporting::merge(loaded, out, train::dtype_named(loading.dtype));
    const auto or_null = [](const std::optional<double>& value) {
        return value ? nlohmann::json(*value) : nlohmann::json();
    };
    if (json) {
        std::printf("%s\n", nlohmann::json({{"out", out},
                                            {"bytes", report.bytes},
                                            {"dtype", io::dtype_name(report.dtype)},
                                            {"largest_difference", report.largest_difference},
                                            {"largest_logit", report.largest_logit},
                                            {"adapter_effect", or_null(report.adapter_effect)},
                                            {"retained", or_null(report.retained)}})
                                .dump()
                                .c_str());
        return 0;
    }
    std::string effect;
    if (report.retained)
        effect = fmt::format(
            ", the adapter changes them by up to {:.3g}, of which {:.1f}% is retained{}",
            *report.adapter_effect, 100 * *report.retained,
            *report.retained < 0.9 && report.dtype != at::kFloat ? "; --dtype f32 retains all" : "");
    fmt::print(
        "{}: {:.1f} MB in {}; probe logits differ from the adapter's by at most {:.2g} (largest logit "
        "{:.3g}{})\n",
        out, static_cast<double>(report.bytes) / 1e6, io::dtype_name(report.dtype), report.largest_difference,
        report.largest_logit, effect);
    return 0;
}

}  // namespace ether::app
