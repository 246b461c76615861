#include "ether/ops/linear/linear.h"

#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/custom_function.h>

#include "ether/core/error.h"
#include "ether/ops/gemm/gemm.h"

namespace ether::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct LinearFunction : torch::autograd::Function<LinearFunction> {
    static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& weight,
                              const std::optional<at::Tensor>& optional_bias, const WeightGradSink* sink,
                              const std::optional<at::Tensor>& /*anchor*/, const at::Tensor* known) {
        const auto bias = optional_bias.value_or(at::Tensor());
        const bool keeps_x = weight.requires_grad() || (sink && *sink);
        context->save_for_backward({weight, keeps_x ? x : at::Tensor(), bias});
        if (sink) sink_of(context) = *sink;
        return known->defined() ? known->detach() : gemm_nt(x, weight, bias);
    }

    static variable_list backward(AutogradContext* context, variable_list grads) {
        const auto saved = context->get_saved_variables();
        const auto &weight = saved[0], &x = saved[1], &bias = saved[2];
        const auto g = grads[0].contiguous();
        at::Tensor grad_x, grad_weight, grad_bias;
        if (context->needs_input_grad(0)) grad_x = gemm_nn(g, weight);
        if (x.defined()) {
            auto gradient = gemm_tn(g, x);
            if (const auto& sink = sink_of(context)) sink(gradient);
            if (context->needs_input_grad(1)) grad_weight = gradient.to(weight.scalar_type());
        }
        if (bias.defined() && context->needs_input_grad(2)) {
            const auto dtype = g.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
            grad_bias = g.sum(0, false, dtype).to(bias.scalar_type());
        }
        return {grad_x, grad_weight, grad_bias, {}, {}, {}};
    }

  private:
    // autograd's context stores IValues, which hold no std::function; a capsule carries it.
    struct SinkCapsule : torch::CustomClassHolder {
        WeightGradSink sink;
    };
    static WeightGradSink& sink_of(AutogradContext* context) {
        auto& slot = context->saved_data["sink"];
        if (slot.isNone()) slot = c10::IValue::make_capsule(c10::make_intrusive<SinkCapsule>());
        return c10::static_intrusive_pointer_cast<SinkCapsule>(slot.toCapsule())->sink;
    }
};

}  // namespace

at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                  const WeightGradSink& sink, const at::Tensor& known) {
    ETHER_ASSERT(x.dim() == 2 && weight.dim() == 2 && x.size(1) == weight.size(1));
    // autograd takes an absent tensor as an empty optional only
    auto optional = [](const at::Tensor& t) { return t.defined() ? std::optional(t) : std::nullopt; };
    // Below the first trained value nothing has a graph, but a sink is to be called all the same.
    const auto anchor =
        sink ? at::empty({0}, x.options().dtype(at::kFloat)).requires_grad_(true) : at::Tensor();
    return LinearFunction::apply(x.contiguous(), weight, optional(bias), &sink, optional(anchor), &known);
}

}  // namespace ether::ops
