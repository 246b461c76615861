// A graph by the operations' kernels on the CPU: a few tokens at a time through all of it, in parallel.
#pragma once

#include "ether/ops/rows/plan.h"

namespace ether::ops {

// Fills `stored` (those of the plan, in the inputs' dtype) from the inputs.
void tiles_forward(const Plan& plan, const std::vector<at::Tensor>& inputs, std::vector<at::Tensor>& stored);

// inputs: those that are computed once more; others may be undefined. grads: of the outputs; undefined where
// none arrives. to: of inputs, overwritten, then of parameters, added to; undefined where not wanted.
void tiles_backward(const Plan& plan, const BackwardPlan& way, const std::vector<at::Tensor>& inputs,
                    const std::vector<at::Tensor>& grads, std::vector<at::Tensor>& to, int64_t tokens);

}  // namespace ether::ops
