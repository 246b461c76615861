#include "ether/ops/rows/composed.h"

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>

#include "ether/ops/dispatch.h"

namespace ether::ops {
namespace {

using Tensors = std::vector<at::Tensor>;

// All values of the plan, in the dtype of the computation; parameters: of all steps.
Tensors values_of(const Plan& plan, const Tensors& inputs, const Tensors& parameters) {
    Tensors values;
    for (const auto& input : inputs) values.push_back(input.to(accumulate_dtype(input.scalar_type())));
    for (const auto& step : plan.steps) {
        Tensors arguments;
        for (const auto argument : step.arguments) arguments.push_back(values[argument]);
        const auto own = at::TensorList(parameters).slice(step.parameters, step.op->parameters.size());
        values.push_back(step.op->composed(arguments, own));
    }
    return values;
}

Tensors parameters_of(const Plan& plan) {
    Tensors parameters;
    for (const auto& step : plan.steps)
        for (const auto& parameter : step.op->parameters) parameters.push_back(parameter.detach());
    return parameters;
}

}  // namespace

Tensors composed_forward(const Plan& plan, const Tensors& inputs) {
    const auto values = values_of(plan, inputs, parameters_of(plan));
    Tensors stored;
    for (const auto value : plan.stored)
        stored.push_back(values[value].to(inputs.front().scalar_type()).contiguous());
    return stored;
}

void composed_backward(const Plan& plan, const BackwardPlan& way, const Tensors& inputs, const Tensors& grads,
                       Tensors& to, int64_t tokens) {
    const at::AutoGradMode record(true);
    const auto given =
        std::find_if(grads.begin(), grads.end(), [](const auto& grad) { return grad.defined(); });
    Tensors leaves, wanted;
    for (size_t i = 0; i < plan.inputs; ++i)
        // The value of one that nobody reads again is of no account.
        leaves.push_back(way.computed[i]
                             ? inputs[i].detach()
                             : at::zeros({1, 1}, given->options()).expand({tokens, plan.widths[i]}));
    auto parameters = parameters_of(plan);
    auto want = [&](at::Tensor& leaf, const at::Tensor& result) {
        if (result.defined()) wanted.push_back(leaf.requires_grad_(true));
    };
    for (size_t i = 0; i < plan.inputs; ++i) want(leaves[i], to[i]);
    for (size_t k = 0; k < plan.parameters; ++k) want(parameters[k], to[plan.inputs + k]);

    const auto values = values_of(plan, leaves, parameters);
    Tensors outputs, arriving;
    for (size_t i = 0; i < grads.size(); ++i) {
        const auto& value = values[plan.outputs[i]];
        if (!grads[i].defined() || !value.requires_grad()) continue;
        outputs.push_back(value);
        arriving.push_back(grads[i].to(value.scalar_type()));
    }
    if (wanted.empty() || outputs.empty()) return;
    const auto found = torch::autograd::grad(outputs, wanted, arriving, /*retain_graph=*/false,
                                             /*create_graph=*/false, /*allow_unused=*/true);
    size_t next = 0;
    for (auto& result : to) {
        if (!result.defined()) continue;
        const auto& gradient = found[next++];
        result = gradient.defined() ? gradient : at::zeros_like(result);
    }
}

}  // namespace ether::ops
