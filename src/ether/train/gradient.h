// The gradient of one optimizer step: forward and backward over its examples, in micro-batches and, where
// that pays, with a slice of each micro-batch's sequences in every thread. Slices need no barrier inside a
// layer and run what is not parallel in itself (autograd, small operations) side by side: 1.3 times the speed
// of threads inside each operation on MiniLM's short batches (docs/performance.md).
#pragma once

#include <cstdint>
#include <span>

#include "ether/core/random.h"
#include "ether/data/order.h"
#include "ether/methods/adapted_model.h"
#include "ether/tasks/task.h"
#include "ether/train/pass_graphs.h"

namespace ether::train {

// How a step spares memory.
struct MemoryMode {
    // A micro-batch passes in pieces of at most so many tokens (or one sequence), one after the other, with
    // all threads in each where one alone would be too short for slices; 0: at once.
    int64_t piece_tokens = 0;
    int64_t checkpointed_blocks = 0;  // run again in backward; the same bits, for about a third more time
};

struct StepOptions {
    int64_t batch = 32;  // sequences of a micro-batch
    Random random{0};    // of this step's dropouts
    MemoryMode memory;
    PassGraphs* graphs = nullptr;  // of all steps, on devices that they suit
};

struct StepSums {
    double loss = 0;  // mean over the step's items
    int64_t tokens = 0;
};

// Whether a micro-batch of this model can pass in pieces.
bool can_pass_in_pieces(methods::AdaptedModel& model);
// An Error of kind usage where it cannot.
void check_can_pass_in_pieces(methods::AdaptedModel& model);
// Whether this model's blocks can be run again in backward.
bool can_checkpoint(methods::AdaptedModel& model);
// An Error of kind usage where they cannot.
void check_can_checkpoint(methods::AdaptedModel& model);

// Adds the gradient of the mean loss over sequences[rows] to the grads of the model's trained parameters. How
// the rows are cut changes nothing but rounding; same cut and thread count: the same bits. A loss that is not
// finite is returned all the same.
StepSums accumulate_gradients(methods::AdaptedModel& model, const tasks::Task& task,
                              std::span<const data::Sequence> sequences, const data::BatchRows& rows,
                              const StepOptions& options);

}  // namespace ether::train
