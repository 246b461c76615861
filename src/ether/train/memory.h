// An estimate of a step's memory, made before the first one, so that a run that cannot fit stops with words.
#pragma once

#include <cstdint>
#include <vector>

#include "ether/methods/adapted_model.h"

namespace ether::train {

struct MemoryEstimate {
    int64_t trained = 0;      // trained values, gradients, optimizer state, and a product not yet added
    int64_t activations = 0;  // of the largest micro-batch, or evaluation batch if that needs more
    int64_t total() const { return trained + activations; }
};

// The largest batch of a kind: all its tokens, and those of its longest sequence.
struct LargestBatch {
    int64_t tokens = 0, longest = 0;
};
// Of `batch` of these lengths, the longest ones.
LargestBatch largest_batch(std::vector<int64_t> lengths, int64_t batch);

// Bytes, besides the base weights that are loaded already, for training on micro-batches of that size and
// evaluating on such batches; with checkpointed activations, the blocks' inputs and one block's values. Binds
// the adapter's forms to look at them, and leaves none bound.
MemoryEstimate estimate_memory(methods::AdaptedModel& model, const LargestBatch& training,
                               const LargestBatch& evaluation, bool checkpoint_activations);

// Throws, saying what to change, if the estimate is beyond what is available.
void check_memory(const MemoryEstimate& estimate, int64_t available);

}  // namespace ether::train
