// Rows: operations that treat each token by itself (row_op.h), gathered into a graph that runs a few tokens
// at a time. What lies between its inputs and outputs never leaves the cache, and only inputs that backward
// needs are kept: it computes the rest once more, tile by tile. So a reflection costs no pass over memory of
// its own where it stands beside a norm, an activation or a residual.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <vector>

#include "ether/ops/rows/row_op.h"

namespace ether::ops {

class Rows {
  public:
    // A (T, width) value of the graph it came from; computed when run() asks for it.
    struct Value {
        int index = -1;
    };

    // x: (T, d) float32, bfloat16 or float64. All inputs of a graph have the same T and dtype. Between inputs
    // and outputs a bfloat16 graph computes in float32.
    Value input(const at::Tensor& x);
    // The arguments have one width.
    Value apply(std::shared_ptr<const RowOp> op, const std::vector<Value>& arguments);

    int64_t width(Value value) const { return nodes_[static_cast<size_t>(value.index)].width; }
    // float64 for float64 inputs, else float32: the dtype of parameters.
    at::ScalarType compute_dtype() const;
    int64_t tokens() const { return nodes_.front().tensor.size(0); }

    // These values as tensors in the inputs' dtype, differentiable in inputs and parameters. The graph may
    // grow and run again: with more inputs, say products of what was returned.
    std::vector<at::Tensor> run(const std::vector<Value>& values) const;
    at::Tensor run(Value value) const { return run(std::vector<Value>{value}).front(); }

  private:
    struct Node {
        std::shared_ptr<const RowOp> op;  // null: an input
        std::vector<int> arguments;
        int64_t width = 0;
        at::Tensor tensor;  // of an input
    };
    std::vector<Node> nodes_;
};

}  // namespace ether::ops
