// Exporting as LoRA: any low-rank change of linear layers as one of PEFT's LoRA adapters, which servers read,
// exactly, or the nearest of a given rank. The result is opened again and compared with the adapter before it
// gets its name.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "ether/eval/loaded_adapter.h"
#include "ether/export/probe.h"

namespace ether::exporting {

struct LoraExport {
    std::string base;      // adapter_config.json's base_model_name_or_path
    int64_t max_rank = 0;  // of the nearest LoRA; 0: exactly the adapter
    bool svd = false;      // take changes that are not low-rank, too; needs max_rank
};

struct LoraReport : Comparison {
    int64_t rank = 0, layers = 0;
    int64_t exact_rank = 0;  // of a LoRA that is the adapter
    int64_t bytes = 0;
    // What the truncation lost of the weights' change, as a share of it in Frobenius' norm: of all layers
    // together, and of the layer that loses most.
    double error = 0, largest_error = 0;
    std::string largest_error_layer;
    std::vector<std::string> warnings;  // what common servers will not take, one line each

    bool exact() const { return rank >= exact_rank; }
};

// Writes adapter_config.json (type LORA, scale 1, the same rank in all layers: where one needs less, factors
// end in zeros), adapter_model.safetensors (float32) with the modules that were trained whole, and
// ether.json. `out` must not exist. Throws, leaving nothing, where no LoRA holds what the adapter changes, if
// the result does not read back as the factors that were meant, and if an exact export's logits differ from
// the adapter's by more than Comparison::tolerance.
LoraReport export_lora(eval::LoadedAdapter& loaded, const std::filesystem::path& out,
                       const LoraExport& options);

}  // namespace ether::exporting
