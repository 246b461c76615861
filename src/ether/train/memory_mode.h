// Which MemoryMode a run takes, by its options and by what memory is free.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "ether/methods/adapted_model.h"
#include "ether/train/gradient.h"
#include "ether/train/memory.h"
#include "ether/train/run_config.h"

namespace ether::train {

// Of the pieces in which such batches pass (MemoryMode).
LargestBatch largest_piece(const LargestBatch& batch, int64_t piece_tokens);

// The tokens of a piece with which the device still multiplies about as fast as with more.
int64_t piece_tokens(at::Device device);

// How many blocks are checkpointed at least, and at most.
struct BlockRange {
    int64_t least = 0, most = 0;
};

// The fastest way that fits: at once; in pieces; in pieces, with as few more checkpointed blocks as it takes.
// in_pieces: absent where the model's batches cannot pass so.
MemoryMode fastest_that_fits(const MemoryEstimate& at_once, const std::optional<MemoryEstimate>& in_pieces,
                             int64_t piece_tokens, BlockRange checkpointed, int64_t available);

struct MemoryChoice {
    MemoryMode mode;
    int64_t eval_batch = 0;             // examples that evaluation takes at once
    std::vector<std::string> warnings;  // what the run does otherwise than it was told, one line each
};

// Lengths: of all examples, in tokens; available: bytes. Errors: of kind usage where the model does not suit
// --memory low or --checkpoint-activations; of kind memory, saying what to change, where nothing fits, unless
// the run is forced.
MemoryChoice choose_memory(methods::AdaptedModel& model, const RunConfig& config,
                           const std::vector<int64_t>& training_lengths,
                           const std::vector<int64_t>& evaluation_lengths, int64_t available, bool resumed);

}  // namespace ether::train
