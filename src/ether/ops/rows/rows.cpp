#include "ether/ops/rows/rows.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>

#include "ether/core/error.h"
#include "ether/ops/composed.h"
#include "ether/ops/dispatch.h"
#include "ether/ops/rows/composed.h"
#include "ether/ops/rows/gpu.h"
#include "ether/ops/rows/tiles.h"

namespace ether::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

using PlanPtr = c10::intrusive_ptr<Plan>;

struct RowsFunction : torch::autograd::Function<RowsFunction> {
    // tensors: inputs, then the parameters of all steps.
    static variable_list forward(AutogradContext* context, at::TensorList tensors, const PlanPtr& plan) {
        const std::vector<at::Tensor> inputs(tensors.begin(),
                                             tensors.begin() + static_cast<int64_t>(plan->inputs));
        const int64_t tokens = inputs.front().size(0);
        variable_list stored, outputs;
        const auto shape = gpu_shape(*plan, inputs.front());
        if (!shape && runs_composed(inputs.front())) {
            stored = composed_forward(*plan, inputs);
        } else {
            for (const auto value : plan->stored)
                stored.push_back(at::empty({tokens, plan->widths[value]}, inputs.front().options()));
            shape ? gpu_forward(*plan, *shape, inputs, stored) : tiles_forward(*plan, inputs, stored);
        }
        // One memory, but a gradient each: these are added up tile by tile.
        for (const auto value : plan->outputs) {
            const auto place = std::find(plan->stored.begin(), plan->stored.end(), value);
            outputs.push_back(stored[static_cast<size_t>(place - plan->stored.begin())].detach());
        }

        std::vector<char> trained;
        for (const auto& tensor : tensors) trained.push_back(tensor.requires_grad());
        const BackwardPlan way(*plan, std::vector<char>(outputs.size(), 1), trained);
        variable_list kept;
        for (size_t i = 0; i < plan->inputs; ++i) {
            const auto& again = plan->again[i];
            kept.push_back(way.computed[i] && !again ? inputs[i] : at::Tensor());
            if (way.computed[i] && again) again->add_reader();
        }
        context->save_for_backward(kept);
        context->set_materialize_grads(false);  // an output that nobody used costs nothing
        context->saved_data["plan"] = c10::IValue::make_capsule(plan);
        return outputs;
    }

    static variable_list backward(AutogradContext* context, variable_list grads) {
        const auto plan = c10::static_intrusive_pointer_cast<Plan>(context->saved_data["plan"].toCapsule());
        auto inputs = context->get_saved_variables();
        std::vector<char> given, trained;
        at::Tensor like;  // some gradient that arrives
        for (auto& grad : grads) {
            given.push_back(grad.defined());
            if (!grad.defined()) continue;
            grad = grad.contiguous();
            like = grad;
        }
        for (size_t i = 0; i < plan->inputs + plan->parameters; ++i)
            trained.push_back(context->needs_input_grad(i));
        const BackwardPlan way(*plan, given, trained);
        variable_list result(plan->inputs + plan->parameters + 1);  // the last one is the plan's
        if (!like.defined()) return result;
        for (size_t i = 0; i < plan->inputs; ++i)
            if (way.computed[i] && plan->again[i]) inputs[i] = plan->again[i]->take();
        for (size_t i = 0; i < plan->inputs; ++i)
            if (trained[i] && way.arrivals[i] > 0)
                result[i] = at::empty({like.size(0), plan->widths[i]}, like.options());
        if (const auto shape = gpu_shape(*plan, like, &trained)) {
            gpu_backward(*plan, *shape, inputs, grads, trained, result, like.size(0));
            return result;
        }
        for (size_t s = 0; s < plan->steps.size(); ++s) {
            const auto& step = plan->steps[s];
            for (size_t k = 0; k < step.op->parameters.size(); ++k) {
                const auto& parameter = step.op->parameters[k];
                const size_t at = plan->inputs + step.parameters + k;
                if (trained[at] && way.runs[s])
                    result[at] = at::zeros(parameter.sizes(), parameter.options());
            }
        }
        (runs_composed(like) ? composed_backward : tiles_backward)(*plan, way, inputs, grads, result,
                                                                   like.size(0));
        return result;
    }
};

}  // namespace

at::Tensor Remade::take() {
    ETHER_ASSERT(readers_ > 0);
    const at::NoGradGuard no_grad;
    if (!made_.defined()) made_ = rows_.run(value_);
    const auto made = made_;
    if (--readers_ == 0) made_ = at::Tensor(), rows_ = Rows();
    return made;
}

Rows::Value Rows::input(const at::Tensor& x, std::shared_ptr<Remade> again) {
    ETHER_ASSERT(x.dim() == 2);
    if (!nodes_.empty())
        ETHER_ASSERT(tokens() == x.size(0) && nodes_.front().tensor.scalar_type() == x.scalar_type());
    nodes_.push_back({nullptr, {}, x.size(1), x.contiguous(), std::move(again)});
    return {static_cast<int>(nodes_.size()) - 1};
}

Rows::Value Rows::apply(std::shared_ptr<const RowOp> op, const std::vector<Value>& arguments) {
    ETHER_ASSERT(!arguments.empty() && arguments.size() <= kMaxArguments);
    ETHER_ASSERT(op->parameters.size() <= kMaxParameters);
    Node node{std::move(op), {}};
    for (const auto argument : arguments) {
        ETHER_ASSERT(width(argument) == width(arguments.front()));
        node.arguments.push_back(argument.index);
    }
    for (const auto& parameter : node.op->parameters)
        ETHER_ASSERT(parameter.scalar_type() == compute_dtype() && parameter.is_contiguous());
    node.width = node.op->width(width(arguments.front()));
    nodes_.push_back(std::move(node));
    return {static_cast<int>(nodes_.size()) - 1};
}

at::ScalarType Rows::compute_dtype() const { return accumulate_dtype(nodes_.front().tensor.scalar_type()); }

std::vector<at::Tensor> Rows::run(const std::vector<Value>& values) const {
    std::vector<char> needed(nodes_.size(), 0);
    for (const auto value : values) needed[static_cast<size_t>(value.index)] = 1;
    for (size_t i = nodes_.size(); i-- > 0;)
        if (needed[i])
            for (const int argument : nodes_[i].arguments) needed[static_cast<size_t>(argument)] = 1;

    auto plan = c10::make_intrusive<Plan>();
    std::vector<size_t> number(nodes_.size());
    std::vector<at::Tensor> tensors;
    auto take = [&](size_t i) {
        number[i] = plan->widths.size();
        plan->widths.push_back(nodes_[i].width);
    };
    for (size_t i = 0; i < nodes_.size(); ++i)
        if (needed[i] && !nodes_[i].op) {
            take(i);
            tensors.push_back(nodes_[i].tensor);
            plan->again.push_back(nodes_[i].again);
        }
    plan->inputs = tensors.size();
    for (size_t i = 0; i < nodes_.size(); ++i) {
        const auto& node = nodes_[i];
        if (!needed[i] || !node.op) continue;
        Plan::Step step{node.op, {}, 0, plan->parameters};
        for (const int argument : node.arguments)
            step.arguments.push_back(number[static_cast<size_t>(argument)]);
        take(i);
        step.result = number[i];
        tensors.insert(tensors.end(), node.op->parameters.begin(), node.op->parameters.end());
        plan->parameters += node.op->parameters.size();
        plan->steps.push_back(std::move(step));
    }
    // Inputs are handed back as they are.
    std::vector<at::Tensor> result(values.size());
    std::vector<size_t> computed;
    for (size_t i = 0; i < values.size(); ++i) {
        const auto at = static_cast<size_t>(values[i].index);
        if (!nodes_[at].op) {
            result[i] = nodes_[at].tensor;
        } else {
            computed.push_back(i);
            plan->outputs.push_back(number[at]);
            if (std::find(plan->stored.begin(), plan->stored.end(), number[at]) == plan->stored.end())
                plan->stored.push_back(number[at]);
        }
    }
    if (computed.empty()) return result;
    auto outputs = RowsFunction::apply(at::TensorList(tensors), plan);
    for (size_t i = 0; i < computed.size(); ++i) result[computed[i]] = std::move(outputs[i]);
    return result;
}

}  // namespace ether::ops
