// Merging: a model folder with the adapter multiplied into the weights, which any software that reads the
// base model reads. The result is opened again and compared with the adapter before it gets its name.
#pragma once

#include <filesystem>

#include "ether/eval/loaded_adapter.h"
#include "ether/export/probe.h"

namespace ether::exporting {

struct MergeReport : Comparison {
    at::ScalarType dtype = at::kFloat;
    int64_t bytes = 0;
    double write_seconds = 0;  // from the first product to the last file that is synced
};

// Writes config.json (with id2label, label2id and the class transformers needs), model.safetensors in `dtype`
// (undefined: the base's own) and the base's tokenizer files, which cut a classifier's texts where its
// training did. `out` must not exist. Throws, leaving nothing, if a tensor does not read back bit by bit, or
// the merged model's logits differ from the adapter's by more than the dtype allows (Comparison::tolerance)
// or, where not all is float32, retain less than half of its effect or are as far from it as the base's.
MergeReport merge(eval::LoadedAdapter& loaded, const std::filesystem::path& out, at::ScalarType dtype);

}  // namespace ether::exporting
