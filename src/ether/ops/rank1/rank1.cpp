#include "ether/ops/rank1/rank1.h"

#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/custom_function.h>

#include "ether/ops/dispatch.h"
#include "ether/ops/rank1/kernel.h"

namespace ether::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Calls body(x type, view) with the view of contiguous left and right.
template <typename Body>
void with_view(const at::Tensor& x, const at::Tensor& left, const at::Tensor& right,
               const std::vector<double>& coefficients, const at::Tensor& rows, Body&& body) {
    dispatch(x.scalar_type(), "rank1", [&](auto type) {
        using X = decltype(type);
        using P = accumulate_t<X>;
        const std::vector<P> c(coefficients.begin(), coefficients.end());
        const int64_t size = left.size(-1), blocks = left.size(-2), terms = left.size(-3);
        body(type, Rank1View<P>{left.const_data_ptr<P>(), right.const_data_ptr<P>(), c.data(),
                                rows.defined() ? rows.const_data_ptr<int32_t>() : nullptr,
                                left.numel() / (terms * blocks * size), terms, blocks, size});
    });
}

struct Rank1Function : torch::autograd::Function<Rank1Function> {
    static at::Tensor forward(AutogradContext* context, const at::Tensor& input, const at::Tensor& left_input,
                              const at::Tensor& right_input, const std::vector<double>& coefficients,
                              const std::optional<at::Tensor>& optional_rows) {
        const auto rows = optional_rows.value_or(at::Tensor());
        const auto x = input.contiguous(), left = left_input.contiguous(), right = right_input.contiguous();
        auto y = at::empty_like(x);
        with_view(x, left, right, coefficients, rows, [&](auto type, const auto& view) {
            using X = decltype(type);
            rank1_forward(view, x.template const_data_ptr<X>(), y.template mutable_data_ptr<X>(), x.size(0));
        });
        context->save_for_backward({x, left, right, rows});
        context->saved_data["coefficients"] = coefficients;
        return y;
    }

    static variable_list backward(AutogradContext* context, variable_list grads) {
        const auto saved = context->get_saved_variables();
        const auto &x = saved[0], &left = saved[1], &right = saved[2], &rows = saved[3];
        const auto grad_y = grads[0].contiguous();
        auto grad_x = at::empty_like(x);
        auto grad_left = context->needs_input_grad(1) ? at::empty_like(left) : at::Tensor();
        auto grad_right = context->needs_input_grad(2) ? at::empty_like(right) : at::Tensor();
        const auto coefficients = context->saved_data["coefficients"].toDoubleVector();
        with_view(x, left, right, coefficients, rows, [&](auto type, const auto& view) {
            using X = decltype(type);
            using P = accumulate_t<X>;
            auto pointer = [](at::Tensor& grad) {
                return grad.defined() ? grad.mutable_data_ptr<P>() : nullptr;
            };
            rank1_backward(view, x.template const_data_ptr<X>(), grad_y.template const_data_ptr<X>(),
                           grad_x.template mutable_data_ptr<X>(), pointer(grad_left), pointer(grad_right),
                           x.size(0));
        });
        return {grad_x, grad_left, grad_right, {}, {}};
    }
};

}  // namespace

at::Tensor rank1(const at::Tensor& x, const at::Tensor& left, const at::Tensor& right,
                 const std::vector<double>& coefficients, const at::Tensor& rows) {
    ETHER_ASSERT(x.dim() == 2 && (left.dim() == 3 || (left.dim() == 4 && rows.defined())));
    ETHER_ASSERT(left.sizes() == right.sizes() && left.size(-1) * left.size(-2) == x.size(1));
    ETHER_ASSERT(left.size(-3) == static_cast<int64_t>(coefficients.size()));
    ETHER_ASSERT(left.scalar_type() == accumulate_dtype(x.scalar_type()) &&
                 right.scalar_type() == left.scalar_type());
    ETHER_ASSERT(!rows.defined() || (rows.scalar_type() == at::kInt && rows.numel() == x.size(0)));
    // autograd takes an absent tensor as an empty optional only
    return Rank1Function::apply(x, left, right, coefficients,
                                rows.defined() ? std::optional(rows) : std::nullopt);
}

}  // namespace ether::ops
