// Measures a forward pass in which every row has an adapter of its own, beside the base model's and the time
// that reading all adapters takes.
#pragma once

#include "ether/eval/bench_input.h"
#include "ether/methods/adapted_model.h"

namespace ether::eval {

struct MixedBatchOptions {
    methods::AdapterConfig adapter;
    BenchInput input{.batch = 128, .tokens = 1};  // rows, each with its own adapter
    int64_t repeats = 7;
};

struct MixedBatchResult {
    double base_seconds = 0, mixed_seconds = 0;  // medians, measured in turn
    int64_t adapter_bytes = 0;                   // of all adapters, as the forward pass reads them
    double bytes_per_second = 0;                 // of plain reading, all threads
    double read_seconds() const { return static_cast<double>(adapter_bytes) / bytes_per_second; }
};

MixedBatchResult bench_mixed_batch(const io::Checkpoint& checkpoint, const MixedBatchOptions& options);

}  // namespace ether::eval
