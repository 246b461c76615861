#include "ether/nn/checkpointing.h"

#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>

namespace ether::nn {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// autograd's context stores IValues, which hold no std::function; a capsule carries it.
struct BlockCapsule : torch::CustomClassHolder {
    BlockCapsule(Block block, const Pass& pass, std::vector<at::Tensor> leaves)
        : block(std::move(block)), pass(pass), leaves(std::move(leaves)) {
        this->pass.last_product = &last_product;
    }
    Block block;
    Pass pass;
    std::vector<at::Tensor> leaves;
    at::Tensor last_product;
};

struct CheckpointFunction : torch::autograd::Function<CheckpointFunction> {
    static at::Tensor forward(AutogradContext* context, const at::Tensor& x, at::TensorList /*values*/,
                              const Block& block, const Pass& pass, const BlockInputs& inputs) {
        const auto capsule = c10::make_intrusive<BlockCapsule>(block, pass, inputs.leaves);
        context->save_for_backward({x});
        context->saved_data["block"] = c10::IValue::make_capsule(capsule);
        return block(x, capsule->pass);
    }

    static variable_list backward(AutogradContext* context, variable_list grads) {
        const auto capsule =
            c10::static_intrusive_pointer_cast<BlockCapsule>(context->saved_data["block"].toCapsule());
        const at::AutoGradMode with_grad(true);
        // The input's gradient is asked for even where nobody needs it, as a weight's sink stands on its way.
        const auto x = context->get_saved_variables().front().detach().requires_grad_(true);
        variable_list wanted = {x};
        wanted.insert(wanted.end(), capsule->leaves.begin(), capsule->leaves.end());
        auto found = torch::autograd::grad({capsule->block(x, capsule->pass)}, wanted, {grads.front()},
                                           /*retain_graph=*/false,
                                           /*create_graph=*/false, /*allow_unused=*/true);
        found.insert(found.end(), 3, at::Tensor());  // of block, pass and inputs
        return found;
    }
};

}  // namespace

at::Tensor BlockInputs::leaf_for(const at::Tensor& value) {
    const auto known = std::find_if(values.begin(), values.end(),
                                    [&](const at::Tensor& other) { return other.is_same(value); });
    if (known != values.end()) return leaves[static_cast<size_t>(known - values.begin())];
    values.push_back(value);
    leaves.push_back(value.is_leaf() ? value : value.detach().requires_grad_(true));
    return leaves.back();
}

at::Tensor checkpointed(const Block& block, const at::Tensor& x, const Pass& pass,
                        const BlockInputs& inputs) {
    return CheckpointFunction::apply(x, at::TensorList(inputs.values), block, pass, inputs);
}

}  // namespace ether::nn
