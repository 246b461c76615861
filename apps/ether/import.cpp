#include "ether/export/import.h"

#include <cstdio>
#include <nlohmann/json.hpp>

#include "command_line.h"
#include "ether/core/error.h"
#include "ether/io/atomic.h"
#include "ether/io/hub_cache.h"
#include "ether/train/run_config.h"
#include "loading.h"
#include "verb.h"

namespace ether::app {

int import_main(int argc, char** argv) {
    LoadingOptions loading;
    std::string out;
    bool json = false;
    CommandLine line(
        "import",
        "Writes an adapter of PEFT's anew, checked against the logits that it has as it is: with "
        "ether.json, so that another base model is refused from then on and labels have names, "
        "and in safetensors, where it is an adapter_model.bin, which no other verb reads. "
        "Everything else of PEFT's every verb reads as it is.",
        "ether import --model DIR --adapter peft/ --out adapter/");
    auto fields = loading.fields();
    for (auto& field : fields)
        if (field.name == "adapter")
            field.help =
                "adapter's folder as PEFT saved it, or org/name in the Hugging Face cache; a checkpoint of "
                "ETHER's published code is for tools/import-official";
    line.add(fields, {"model", "adapter"});
    line.add({{.name = "out", .value = &out, .help = "folder to write; must not exist"},
              {.name = "json", .value = &json, .help = "print one JSON object"}},
             {"out"});
    if (!line.parse(argc, argv)) return 0;
    io::remove_temporaries_on_signals();

    if (const auto names = io::split_adapters(loading.adapter);
        names.size() > 1 || (names.size() == 1 && !names.front().weight.empty()))
        fail(ErrorKind::usage, "--adapter: \"{}\" is more than one whole adapter; import each by itself",
             loading.adapter);
    loading.device = "cpu";  // where the result is checked
    loading.pickles = io::Pickles::read;
    auto loaded = loading.load();
    const auto report = exporting::import_adapter(loaded, out, train::from_anywhere(loading.model));
    const auto* task = loaded.model->is_headless() ? tasks::kNoTask : loaded.task->name();
    if (json) {
        std::printf("%s\n", nlohmann::json({{"out", out},
                                            {"method", report.method},
                                            {"layers", report.layers},
                                            {"parameters", report.parameters},
                                            {"bytes", report.bytes},
                                            {"task", task},
                                            {"largest_difference", report.largest_difference},
                                            {"adapter_effect", report.adapter_effect}})
                                .dump()
                                .c_str());
        finish_output();
        return 0;
    }
    fmt::print("{}: {} for {}, {} values on {} layers; it changes probe logits by up to {:.3g}\n", out,
               report.method, task, report.parameters, report.layers, report.adapter_effect);
    return 0;
}

}  // namespace ether::app
