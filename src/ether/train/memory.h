// An estimate of a step's memory, made before the first one, so that a run that cannot fit stops with words.
#pragma once

#include <cstdint>

#include "ether/methods/adapted_model.h"

namespace ether::train {

struct MemoryEstimate {
    int64_t weights = 0;      // base weights in the dtype of the computation
    int64_t trained = 0;      // trained values, their gradients and optimizer state
    int64_t activations = 0;  // kept between forward and backward for the largest micro-batch
    int64_t total() const { return weights + trained + activations; }
};

// tokens: of the largest micro-batch; longest: of its longest sequence. Bytes.
MemoryEstimate estimate_memory(const methods::AdaptedModel& model, int64_t tokens, int64_t longest);

// What this process may still take: the system's available memory, or less where ulimit -v says so. Bytes.
int64_t available_memory();

// Throws, saying what to change, if the estimate is beyond what is available.
void check_memory(const MemoryEstimate& estimate, int64_t available);

}  // namespace ether::train
