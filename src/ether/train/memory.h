// An estimate of a step's memory, made before the first one, so that a run that cannot fit stops with words.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ether/methods/adapted_model.h"

namespace ether::train {

// Bytes. Activations are those of the largest micro-batch, or of an evaluation batch if that needs more.
struct MemoryEstimate {
    int64_t trained = 0;  // trained values, gradients, optimizer state, and a product not yet added
    int64_t blocks = 0, block = 0, checkpoint = 0;  // how many; what each keeps, and keeps if checkpointed
    int64_t rest = 0;                               // of a training step's activations
    int64_t evaluation = 0;                         // not estimated yet: see evaluation_bytes
    bool whole_logits = false;                      // of an adapted head

    int64_t activations(int64_t checkpointed_blocks) const;
    int64_t total(int64_t checkpointed_blocks) const { return trained + activations(checkpointed_blocks); }
    // The fewest checkpointed blocks with which it fits; all if it does not.
    int64_t blocks_to_checkpoint(int64_t available) const;
};

// The largest batch of a kind: all its tokens, and those of its longest sequence.
struct LargestBatch {
    int64_t tokens = 0, longest = 0;
};
// Of `batch` of these lengths, the longest ones.
LargestBatch largest_batch(std::vector<int64_t> lengths, int64_t batch);
// What is needed, besides the base weights that are loaded already, for training on micro-batches of that
// size. Binds the adapter's forms to look at them, and leaves none bound.
MemoryEstimate estimate_memory(methods::AdaptedModel& model, const LargestBatch& training);
// The same of evaluating on such batches: without gradients a block's values live until the next one.
int64_t evaluation_bytes(const nn::Model& model, const LargestBatch& batch, bool whole_logits);

// Throws if the estimate is beyond what is available; advice: what to change.
void check_memory(const MemoryEstimate& estimate, int64_t checkpointed_blocks, int64_t available,
                  const std::string& advice);

}  // namespace ether::train
