// Measures training steps on random tokens beside the hardware's limit, in one process.
#pragma once

#include <string>
#include <vector>

#include "ether/eval/bench_input.h"
#include "ether/methods/adapted_model.h"
#include "ether/ops/gemm/rate.h"
#include "ether/train/gradient.h"

namespace ether::eval {

struct TrainStepOptions {
    methods::AdapterConfig adapter;  // method "none": everything frozen, same backward through all layers
    BenchInput input;
    int64_t steps = 5;
    bool checkpoint_activations = false;
    std::string memory = "fast";  // or "low", as --memory of ether train
};

struct TrainStepResult {
    double median_seconds = 0;  // of a step, the first left out
    double tokens_per_second = 0;
    // After the steps, before the limit is measured: of the process, and of a GPU's memory.
    int64_t peak_rss_bytes = 0, peak_device_bytes = 0;
    int64_t trainable_parameters = 0;
    double flops_per_token = 0;  // forward and backward to the input, causal attention included
    std::string gemm;            // the fastest way to multiply here
    double gemm_flops_per_second = 0;
    double gemm_limit_tokens_per_second = 0;
};

// Median seconds of a training step on random tokens, after one that warms up.
double median_step(methods::AdaptedModel& model, const BenchInput& input, int64_t steps,
                   const train::MemoryMode& memory = {});

TrainStepResult bench_train_step(const io::Checkpoint& checkpoint, const TrainStepOptions& options);

// A token's: 4 * sum of in * out over all linear layers (head included; BERT's pooler and head once a
// sequence), and 7 * layers * heads * head_dim * (tokens + 1) for attention, where 2 * tokens stands for
// (tokens + 1) if it is not causal.
double train_flops_per_token(const nn::Model& model, int64_t tokens);

// Of the linear layers that see every token.
std::vector<ops::GemmShape> gemm_shapes(const nn::Model& model);

}  // namespace ether::eval
