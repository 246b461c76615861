// Merging: a model folder with the adapter multiplied into the weights, which any software that reads the
// base model reads. The result is opened again and compared with the adapter before it gets its name.
#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include "ether/eval/loaded_adapter.h"

namespace ether::exporting {

struct MergeReport {
    double largest_difference = 0;  // of probe logits, merged against adapter
    double largest_logit = 0;       // of the adapter's forward, in magnitude
    // Largest change of the probe logits by the adapter, to see the merge's error beside it. Absent where the
    // base weights themselves were trained.
    std::optional<double> adapter_effect;
    // The merged model's change of them along the adapter's, as a share of it: 1 where rounding to the dtype
    // lost nothing, 0 where it lost all. Absent where the adapter changes nothing, too.
    std::optional<double> retained;
    at::ScalarType dtype = at::kFloat;
    int64_t bytes = 0;
};

// Writes config.json (with id2label, label2id and the class transformers needs), model.safetensors in `dtype`
// (undefined: the base's own) and the base's tokenizer files, which cut a classifier's texts where its
// training did. `out` must not exist. Throws, leaving nothing, if the merged model's logits differ from the
// adapter's by more than the dtype allows: 1e-4 (float32) or 5e-2 (bfloat16) relative to max(1, largest
// logit).
MergeReport merge(eval::LoadedAdapter& loaded, const std::filesystem::path& out, at::ScalarType dtype);

}  // namespace ether::exporting
