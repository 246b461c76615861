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

class Remade;

class Rows {
  public:
    // A (T, width) value of the graph it came from; computed when run() asks for it.
    struct Value {
        int index = -1;
    };

    // x: (T, d) float32, bfloat16 or float64. All inputs of a graph have the same T and dtype. Between inputs
    // and outputs a bfloat16 graph computes in float32.
    // again: where backward has x from, instead of keeping it.
    Value input(const at::Tensor& x, std::shared_ptr<Remade> again = nullptr);
    // The arguments have one width.
    Value apply(std::shared_ptr<const RowOp> op, const std::vector<Value>& arguments);

    bool is_input(Value value) const { return !nodes_[static_cast<size_t>(value.index)].op; }
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
        at::Tensor tensor = {};  // of an input
        std::shared_ptr<Remade> again = {};
    };
    std::vector<Node> nodes_;
};

// A graph's value that others read in backward: made again by the first of them that asks, and dropped by the
// last, for it costs less than memory does where the graph's inputs are kept anyway. For one backward, in one
// thread.
class Remade {
  public:
    Remade(Rows rows, Rows::Value value) : rows_(std::move(rows)), value_(value) {}

    void add_reader() { ++readers_; }
    // The value, without a gradient; once for each reader.
    at::Tensor take();

  private:
    Rows rows_;
    const Rows::Value value_;
    int readers_ = 0;
    at::Tensor made_;
};

}  // namespace ether::ops
