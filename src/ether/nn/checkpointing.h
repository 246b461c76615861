// Activation checkpointing (Chen et al., arXiv 1604.06174): a block keeps its input, and backward runs it
// once more. It also keeps the product of its last layer, as large as the input and the dearest a value (an
// MLP is wide before it), which a second run would need for no other product.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <vector>

#include "ether/nn/pass.h"

namespace ether::nn {

// What one block trains: the values as the graph around it knows them, and the leaves that stand for them
// inside. Leaves, since values may depend on one another, and a gradient is to stop at each.
struct BlockInputs {
    std::vector<at::Tensor> values, leaves;

    // The leaf that stands for `value`, which requires gradients.
    at::Tensor leaf_for(const at::Tensor& value);
};

using Block = std::function<at::Tensor(const at::Tensor& x, const Pass&)>;

// block(x, pass), differentiable in x and inputs.values. The block must read nothing else that is trained,
// compute the same each time (dropouts do: they are drawn by place), and stay callable until backward.
at::Tensor checkpointed(const Block& block, const at::Tensor& x, const Pass& pass, const BlockInputs& inputs);

}  // namespace ether::nn
