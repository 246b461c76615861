// What benches run: a model with the head that its architecture has, and random tokens.
#pragma once

#include <memory>
#include <vector>

#include "ether/data/batch.h"
#include "ether/io/checkpoint.h"
#include "ether/nn/model.h"

namespace ether::eval {

struct BenchInput {
    int64_t batch = 2, tokens = 256;                   // sequences, and tokens of each
    at::ScalarType dtype = at::ScalarType::Undefined;  // the checkpoint's own
    uint64_t seed = 0;
    at::Device device = at::kCPU;
};

// A language model, or an encoder with a new head of two classes.
std::unique_ptr<nn::Model> load_bench_model(const io::Checkpoint& checkpoint, const BenchInput& input);

// With targets for a language model, labels 0 and 1 for a classifier. Refuses more tokens than it has
// positions.
std::vector<data::Sequence> random_sequences(const nn::ModelShape& shape, const BenchInput& input);

}  // namespace ether::eval
