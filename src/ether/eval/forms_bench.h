// Measures a training step with every form that an adapter may have, beside ETHER's.
#pragma once

#include <functional>
#include <string>

#include "ether/eval/bench_input.h"

namespace ether::eval {

struct FormsBenchOptions {
    BenchInput input;
    int64_t steps = 5;
    std::string targets = "all-linear";
};

struct FormRow {
    std::string form, method;  // what acts, and the method it is measured by
    double seconds = 0;        // median step
    double own_flops = 0;      // of a step: forward, backward to the input and to the form's tensors
    double ratio = 0;          // to ETHER's step, the mean of one before and one after all others
    // What the ratio is to be at most: 1.05, and the own FLOPs at 0.7 of the machine's best rate of products.
    double allowed = 0;
};

struct FormsBenchResult {
    double ether_seconds = 0, gemm_flops_per_second = 0;
    std::vector<FormRow> rows;
};

// told: called before each measurement with the method's name, which takes a while. Forms that the model's
// task cannot have are left out (gates in a language model).
FormsBenchResult bench_forms(const io::Checkpoint& checkpoint, const FormsBenchOptions& options,
                             const std::function<void(const std::string&)>& told);

}  // namespace ether::eval
