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
    int64_t shared = 0;                    // values in shared memory
    std::vector<RowOp::DeviceCode> codes;  // of each step

    // threads stays 0 if an operation has no device code, widths differ, or a row is too wide.
    GpuShape(const Plan& plan, at::ScalarType dtype);

    // Of one row, in shared memory; a thread's part of it is by `threads` less.
    int64_t shared_values(int64_t width) const {
        return (width / chunk + threads - 1) / threads * threads * chunk;
    }
};

// A parameter's gradient, which each block of threads adds up over its rows, in so many rows of the step's
// width.
struct GpuSum {
    size_t step, parameter;
    int64_t rows;
    int64_t shared = -1;  // where it begins in the block's dynamic shared memory, in values; -1: in registers
};

// Arguments, each a word: the number of rows; inputs; stored values; then of each step its parameters, words
// and numbers.
std::string forward_source(const Plan& plan, const GpuShape& shape);

// Arguments: the number of rows; inputs; gradients of outputs; gradients of inputs; of each step its
// parameters, words and numbers; where the sums go, (blocks, the sums' rows one after the other). What is not
// read or wanted is a word all the same. given: whether an output's gradient is defined; tied: of a step,
// whether both parameters are one tensor.
std::string backward_source(const Plan& plan, const GpuShape& shape, const BackwardPlan& way,
                            const std::vector<char>& given, const std::vector<char>& trained,
                            const std::vector<char>& tied, const std::vector<GpuSum>& sums);

}  // namespace ether::ops
