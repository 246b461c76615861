// What one forward pass carries through a model besides activations: the batch's layout, and whether and how
// to drop. Plain data owned by the caller for the length of the pass.
#pragma once

#include <ATen/core/Tensor.h>

#include "ether/core/random.h"
#include "ether/data/batch.h"

namespace ether::nn {

struct Pass {
    const data::Batch& batch;
    bool training = false;       // dropouts act
    Random random{0};            // of this pass's dropouts: derived from (seed, step, index)
    int64_t first_token = 0;     // rows before this micro-batch in its step's batch: dropouts count them, so
    int64_t first_sequence = 0;  // that accumulated micro-batches are the large batch exactly
    int index = 0;               // which of a step's forward passes (Method::forward_passes) this is
    bool bound = false;          // its forms are bound already: one of several passes that share them
    int64_t checkpointed_blocks = 0;  // so many, from the first one, run again in backward
    at::Tensor adapter_rows = {};     // (T) int32: each token's entry in the forms' banks; undefined: entry 0
    at::Tensor offsets = {};          // where each sequence begins, if not where the batch says
    // Of a block that is run twice: what its last layer's product is kept in by the first run, for the
    // second.
    at::Tensor* last_product = nullptr;
    bool* drew = nullptr;  // becomes true where random numbers are asked for: no two such passes are alike

    // Where each sequence's rows begin, and their end: (B + 1) int32.
    const at::Tensor& sequence_offsets() const { return offsets.defined() ? offsets : batch.cu_seqlens; }

    // The random numbers of one place: a layer (or site) and a dropout in it. Ask only if they are needed.
    Random stream(int64_t place, std::string_view name) const {
        if (drew) *drew = true;
        return random.stream(static_cast<uint64_t>(place)).stream(name);
    }
};

}  // namespace ether::nn
