// Importing: an adapter of PEFT's as one of our own, which knows its base model and its labels and whose
// weights are safetensors. It is opened again and compared before it gets its name.
#pragma once

#include <filesystem>
#include <string>

#include "ether/eval/loaded_adapter.h"
#include "ether/export/probe.h"

namespace ether::exporting {

struct ImportReport : Comparison {
    std::string method;
    int64_t layers = 0;      // that it adapts
    int64_t parameters = 0;  // values of the method; heads are not counted
    int64_t bytes = 0;       // of adapter_model.safetensors
};

// `base` becomes adapter_config.json's base_model_name_or_path. `out` must not exist. Throws, leaving
// nothing, if what was written is not the same function (write_checked).
ImportReport import_adapter(eval::LoadedAdapter& loaded, const std::filesystem::path& out,
                            const std::string& base);

}  // namespace ether::exporting
