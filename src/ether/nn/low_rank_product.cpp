#include "ether/nn/low_rank_product.h"

#include <ATen/ops/addmm.h>
#include <ATen/ops/mm.h>
#include <torch/csrc/autograd/custom_function.h>

#include <utility>

#include "ether/core/error.h"

namespace ether::nn {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct LowRankProduct : torch::autograd::Function<LowRankProduct> {
    // What backward makes h of: x, kept or to be had again, and the dropouts between.
    struct Source : torch::CustomClassHolder {
        Tensor x;
        std::shared_ptr<ops::Remade> remade;
        Chain dropouts;
        FormPass pass;
        double scale = 1;
        bool in_place = false;

        Tensor take() {
            const at::NoGradGuard no_grad;
            const auto input = remade ? std::exchange(remade, nullptr)->take() : std::exchange(x, {});
            ETHER_ASSERT(input.defined());  // of a second backward through one graph
            return apply_chain(dropouts, input, pass);
        }
    };

    // h's gradient is x's behind the dropouts, whose own graph takes it there.
    static Tensor forward(AutogradContext* context, const Tensor& y, const Tensor& h, const Tensor& a,
                          const Tensor& b, const c10::intrusive_ptr<Source>& source) {
        const auto inner = h.mm(a.t());
        context->save_for_backward({inner, a, b});
        context->saved_data["source"] = c10::IValue::make_capsule(source);
        if (!source->in_place) return at::addmm(y, inner, b.t(), 1, source->scale);
        context->mark_dirty({y});
        Tensor sum = y;
        return sum.addmm_(inner, b.t(), 1, source->scale);
    }

    static variable_list backward(AutogradContext* context, variable_list grads) {
        const auto saved = context->get_saved_variables();
        const auto &inner = saved[0], &a = saved[1], &b = saved[2];
        auto source = c10::static_intrusive_pointer_cast<Source>(context->saved_data["source"].toCapsule());
        const auto& g = grads[0];
        const auto grad_inner = g.mm(b).mul_(source->scale);
        variable_list result(5);
        if (context->needs_input_grad(0)) result[0] = g;
        if (context->needs_input_grad(1)) result[1] = grad_inner.mm(a);
        if (context->needs_input_grad(2)) result[2] = grad_inner.t().mm(source->take());
        if (context->needs_input_grad(3)) result[3] = g.t().mm(inner).mul_(source->scale);
        return result;
    }
};

}  // namespace

Tensor plus_low_rank(const Tensor& y, const Tensor& x, const Chain& dropouts, const FormPass& pass,
                     const Tensor& a, const Tensor& b, double scale, bool in_place,
                     std::shared_ptr<ops::Remade> remade) {
    auto source = c10::make_intrusive<LowRankProduct::Source>();
    if (a.requires_grad() && remade)
        remade->add_reader(), source->remade = std::move(remade);
    else if (a.requires_grad())
        source->x = x.detach();
    source->dropouts = dropouts, source->pass = pass;
    source->scale = scale, source->in_place = in_place;
    return LowRankProduct::apply(y, apply_chain(dropouts, x, pass), a, b, source);
}

}  // namespace ether::nn
