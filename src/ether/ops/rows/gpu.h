// A graph as one kernel of a GPU: a row passes through all of it in a processor's registers. For graphs whose
// operations have device code (RowOp::device_code); a kernel is compiled when its graph first runs.
#pragma once

#include <optional>

#include "ether/ops/rows/gpu_source.h"

namespace ether::ops {

// How the graph's kernels would run on inputs like this one; none where it is to be composed. trained: of
// inputs, then parameters, for the way back.
std::optional<GpuShape> gpu_shape(const Plan& plan, const at::Tensor& like,
                                  const std::vector<char>* trained = nullptr);

// As tiles_forward (tiles.h).
void gpu_forward(const Plan& plan, const GpuShape& shape, const std::vector<at::Tensor>& inputs,
                 std::vector<at::Tensor>& stored);

// As tiles_backward, but parameters' gradients are made here, of those `trained` whose step runs. A tensor
// that is both parameters of an operation has all its gradient as the first.
void gpu_backward(const Plan& plan, const GpuShape& shape, const std::vector<at::Tensor>& inputs,
                  const std::vector<at::Tensor>& grads, const std::vector<char>& trained,
                  std::vector<at::Tensor>& to, int64_t tokens);

}  // namespace ether::ops
