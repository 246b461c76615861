#include "ether/nn/dense_product.h"

#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include "ether/core/error.h"
#include "ether/ops/gemm/gemm.h"

namespace ether::nn {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

Tensor plus(const Tensor& weight, const Tensor& matrix) {
    return weight.defined() ? weight + matrix : matrix;
}

struct DenseProduct : torch::autograd::Function<DenseProduct> {
    struct Parts : torch::CustomClassHolder {
        Dense::Make make;
        ops::WeightGradSink sink;
    };

    static Tensor forward(AutogradContext* context, const Tensor& x, at::TensorList of,
                          const std::optional<Tensor>& optional_weight,
                          const std::optional<Tensor>& optional_bias, const c10::intrusive_ptr<Parts>& parts,
                          const Tensor* known) {
        const auto weight = optional_weight.value_or(Tensor()), bias = optional_bias.value_or(Tensor());
        variable_list saved = {x, weight, bias};
        saved.insert(saved.end(), of.begin(), of.end());
        context->save_for_backward(saved);
        context->saved_data["parts"] = c10::IValue::make_capsule(parts);
        if (known->defined()) return known->detach();
        return ops::gemm_nt(x, plus(weight, parts->make(of.vec())), bias);
    }

    static variable_list backward(AutogradContext* context, variable_list grads) {
        const auto saved = context->get_saved_variables();
        const auto &x = saved[0], &weight = saved[1], &bias = saved[2];
        const auto parts =
            c10::static_intrusive_pointer_cast<Parts>(context->saved_data["parts"].toCapsule());
        variable_list of, wanted;
        for (size_t i = 3; i < saved.size(); ++i) {
            of.push_back(saved[i].detach());
            if (saved[i].requires_grad()) wanted.push_back(of.back().requires_grad_(true));
        }
        Tensor matrix;
        {
            const at::AutoGradMode record(true);
            matrix = parts->make(of);
        }
        const auto g = grads[0].contiguous();
        variable_list result(saved.size() + 2);  // x, of, weight, bias, and two that are no tensors
        if (context->needs_input_grad(0)) result[0] = ops::gemm_nn(g, plus(weight, matrix.detach()));
        const auto gradient = ops::gemm_tn(g, x);
        if (parts->sink) parts->sink(gradient);
        if (!wanted.empty()) {
            auto found =
                torch::autograd::grad({matrix}, wanted, {gradient.to(matrix.scalar_type())},
                                      /*retain_graph=*/false, /*create_graph=*/false, /*allow_unused=*/true);
            for (size_t i = 0, next = 0; i < of.size(); ++i)
                if (of[i].requires_grad()) result[1 + i] = found[next++];
        }
        const size_t after = 1 + of.size();
        if (weight.defined() && weight.requires_grad()) result[after] = gradient.to(weight.scalar_type());
        if (bias.defined() && bias.requires_grad()) result[after + 1] = g.sum(0).to(bias.scalar_type());
        return result;
    }
};

}  // namespace

Tensor dense_product(const Dense& form, const Tensor& x, const Tensor& weight, const Tensor& bias,
                     const ops::WeightGradSink& sink, const Tensor& known) {
    // autograd takes an absent tensor as an empty optional only
    auto optional = [](const Tensor& t) { return t.defined() ? std::optional(t) : std::nullopt; };
    auto parts = c10::make_intrusive<DenseProduct::Parts>();
    parts->make = form.make, parts->sink = sink;
    return DenseProduct::apply(x.contiguous(), at::TensorList(form.of), optional(weight), optional(bias),
                               parts, &known);
}

}  // namespace ether::nn
