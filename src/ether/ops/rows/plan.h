// What a graph's run consists of (Plan), and what its way back does (BackwardPlan): shared by those who run
// it, tiles.h, gpu.h and composed.h.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>

#include <memory>
#include <vector>

#include "ether/ops/rows/row_op.h"
#include "ether/ops/rows/rows.h"

namespace ether::ops {

// What run() runs: the part of a graph that its outputs need, in order, with values numbered anew (inputs
// first). Immutable, shared by forward and backward.
struct Plan : torch::CustomClassHolder {
    struct Step {
        std::shared_ptr<const RowOp> op;
        std::vector<size_t> arguments;
        size_t result;
        size_t parameters;  // index of its first one among all
    };
    std::vector<Step> steps;
    std::vector<int64_t> widths;  // of each value
    std::vector<size_t> outputs;  // a value that several products read is several outputs
    std::vector<size_t> stored;   // each of these once
    size_t inputs = 0, parameters = 0;
    std::vector<std::shared_ptr<Remade>> again;  // of each input; null: it is kept
};

// Which values and gradients backward takes. Found once, before the first row.
struct BackwardPlan {
    std::vector<char> wants_grad;  // of a value: something trained lies before it, or it is an input that is
    std::vector<int> arrivals;     // gradients that are added up to the value's own
    std::vector<char> computed;    // the value is made once more
    std::vector<char> runs;        // of a step
    std::vector<size_t> same;      // a value whose gradient is this one's, too: the last one such

    // given: whether an output's gradient is defined; trained: of inputs, then parameters.
    BackwardPlan(const Plan& plan, const std::vector<char>& given, const std::vector<char>& trained);
};

}  // namespace ether::ops
