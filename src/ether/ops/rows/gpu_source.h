// The CUDA C++ of a graph's kernels (gpu.h), made of the operations' device code (*.cuh).
#pragma once

#include <string>
#include <vector>

#include "ether/ops/rows/plan.h"

namespace ether::ops {

// What a graph's kernels have in common.
struct GpuShape {
    at::ScalarType dtype;                  // of inputs and outputs
    int64_t chunk = 0;                     // neighbouring values that a thread holds
    int64_t threads = 0;                   // of a block
    int64_t shared = 0;                    // values that threads tell each other at a time
    std::vector<RowOp::DeviceCode> codes;  // of each step

    // threads stays 0 if an operation has no device code, widths differ, or a row is too wide.
    GpuShape(const Plan& plan, at::ScalarType dtype);

    // Of a row in shared memory, where each thread has its own part; registers hold that of one thread.
    int64_t shared_values(int64_t width) const {
        return (width / chunk + threads - 1) / threads * threads * chunk;
    }
};

// What a kernel reads row by row: an input, or an output's gradient.
struct Fetched {
    size_t value;
    bool gradient = false;
    size_t output = 0;  // of a gradient

    bool operator==(const Fetched&) const = default;
};
std::vector<Fetched> fetched_forward(const Plan& plan);
// given: whether an output's gradient is defined.
std::vector<Fetched> fetched_backward(const Plan& plan, const BackwardPlan& way,
                                      const std::vector<char>& given);

// A parameter's gradient, which each block of threads adds up over its rows, in so many rows of the step's
// width.
struct GpuSum {
    size_t step, parameter;
    int64_t rows;
    int64_t shared = -1;  // where it begins in the block's dynamic shared memory, in bytes; -1: in registers
};

// What a kernel has room for.
struct GpuRoom {
    int64_t bytes = 0;    // of a block's dynamic shared memory
    bool staged = false;  // whether that begins with two rows of each that is fetched (prelude.cuh: Staged)
    std::vector<char> held;  // of a step, whether registers hold its parameters (prelude.cuh: Parameter)
    int64_t blocks = 1;      // of a processor
};

// Arguments, each a word: the number of rows; inputs; stored values; then of each step its parameters, words
// and numbers.
std::string forward_source(const Plan& plan, const GpuShape& shape, const GpuRoom& room);

// Arguments: the number of rows; inputs; gradients of outputs; gradients of inputs; of each step its
// parameters, words and numbers; where the sums go, (blocks, the sums' rows one after the other). What is not
// read or wanted is a word all the same. tied: of a step, whether both parameters are one tensor; stores: of
// an input, whether its gradient is written.
std::string backward_source(const Plan& plan, const GpuShape& shape, const BackwardPlan& way,
                            const std::vector<char>& given, const std::vector<char>& trained,
                            const std::vector<char>& tied, const std::vector<char>& stores,
                            const GpuRoom& room, const std::vector<GpuSum>& sums);

}  // namespace ether::ops
