#include "ether/export/merge.h"

#include <cstdio>
#include <nlohmann/json.hpp>

#include "command_line.h"
#include "comparison.h"
#include "ether/io/atomic.h"
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
    io::remove_temporaries_on_signals();

    loading.device = "cpu";  // where the result is checked
    auto loaded = loading.load();
    const auto report = exporting::merge(loaded, out, train::dtype_named(loading.dtype));
    if (json) {
        nlohmann::json object = {{"out", out},
                                 {"bytes", report.bytes},
                                 {"dtype", io::dtype_name(report.dtype)},
                                 {"write_seconds", report.write_seconds}};
        add_comparison(report, object);
        std::printf("%s\n", object.dump().c_str());
        finish_output();
        return 0;
    }
    fmt::print("{}: {:.1f} MB in {}; {}\n", out, static_cast<double>(report.bytes) / 1e6,
               io::dtype_name(report.dtype),
               comparison_text(report, report.dtype == at::kFloat ? "" : "; --dtype f32 retains all"));
    return 0;
}

}  // namespace ether::app
