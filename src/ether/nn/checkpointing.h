// Activation checkpointing (Chen et al., arXiv 1604.06174): a block keeps its input alone, and backward runs
// it once more.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <vector>

namespace ether::nn {

// What one block trains: the values as the graph around it knows them, and the leaves that stand for them
// inside. Leaves, since values may depend on one another, and a gradient is to stop at each.
struct BlockInputs {
    std::vector<at::Tensor> values, leaves;

    // The leaf that stands for `value`, which requires gradients.
    at::Tensor leaf_for(const at::Tensor& value);
};

using Block = std::function<at::Tensor(const at::Tensor& x)>;

// block(x), differentiable in x and inputs.values. The block must read nothing else that is trained, compute
// the same each time (dropouts do: they are drawn by place), and stay callable until backward.
at::Tensor checkpointed(const Block& block, const at::Tensor& x, const BlockInputs& inputs);

}  // namespace ether::nn
