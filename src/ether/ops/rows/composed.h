// A graph of libtorch's operations (RowOp::composed), on any device.
#pragma once

#include "ether/ops/rows/plan.h"

namespace ether::ops {

// The plan's stored values, in the inputs' dtype.
std::vector<at::Tensor> composed_forward(const Plan& plan, const std::vector<at::Tensor>& inputs);

// The arguments of tiles_backward (tiles.h). Runs forward once more, recorded by autograd.
void composed_backward(const Plan& plan, const BackwardPlan& way, const std::vector<at::Tensor>& inputs,
                       const std::vector<at::Tensor>& grads, std::vector<at::Tensor>& to, int64_t tokens);

}  // namespace ether::ops
