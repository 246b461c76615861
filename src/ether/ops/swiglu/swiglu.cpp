#include "ether/ops/swiglu/swiglu.h"

#include <ATen/ops/empty_like.h>
#include <torch/csrc/autograd/custom_function.h>

#include "ether/core/parallel.h"
#include "ether/ops/dispatch.h"
#include "ether/ops/isa.h"
#include "ether/ops/vector_math.h"

namespace ether::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int64_t kGrain = 4096;

struct SwigluFunction : torch::autograd::Function<SwigluFunction> {
    static at::Tensor forward(AutogradContext* context, const at::Tensor& gate_input,
                              const at::Tensor& up_input) {
        const auto gate = gate_input.contiguous(), up = up_input.contiguous();
        auto y = at::empty_like(gate);
        dispatch(gate.scalar_type(), "swiglu", [&](auto type) {
            using X = decltype(type);
            using A = accumulate_t<X>;
            const X *a = gate.template const_data_ptr<X>(), *b = up.template const_data_ptr<X>();
            X* out = y.template mutable_data_ptr<X>();
            parallel_for(gate.numel(), kGrain, [&](int, int64_t begin, int64_t end) {
                for_best_isa([&] {
#pragma omp simd
                    for (int64_t i = begin; i < end; ++i) {
                        const A x = static_cast<A>(a[i]);
                        out[i] = static_cast<X>(x * sigmoid(x) * static_cast<A>(b[i]));
                    }
                });
            });
        });
        context->save_for_backward({gate, up});
        return y;
    }

    // d silu(x) = s (1 + x (1 - s)) with s = sigmoid(x).
    static variable_list backward(AutogradContext* context, variable_list grads) {
        const auto saved = context->get_saved_variables();
        const auto &gate = saved[0], &up = saved[1];
        const auto g = grads[0].contiguous();
        auto grad_gate = at::empty_like(gate), grad_up = at::empty_like(up);
        dispatch(gate.scalar_type(), "swiglu", [&](auto type) {
            using X = decltype(type);
            using A = accumulate_t<X>;
            const X *a = gate.template const_data_ptr<X>(), *b = up.template const_data_ptr<X>();
            const X* grad = g.template const_data_ptr<X>();
            X *to_gate = grad_gate.template mutable_data_ptr<X>(),
              *to_up = grad_up.template mutable_data_ptr<X>();
            parallel_for(gate.numel(), kGrain, [&](int, int64_t begin, int64_t end) {
                for_best_isa([&] {
#pragma omp simd
                    for (int64_t i = begin; i < end; ++i) {
                        const A x = static_cast<A>(a[i]), s = sigmoid(x), dy = static_cast<A>(grad[i]);
                        to_gate[i] = static_cast<X>(dy * static_cast<A>(b[i]) * s * (1 + x * (1 - s)));
                        to_up[i] = static_cast<X>(dy * x * s);
                    }
                });
            });
        });
        return {grad_gate, grad_up};
    }
};

}  // namespace

at::Tensor swiglu(const at::Tensor& gate, const at::Tensor& up) {
    ETHER_ASSERT(gate.sizes() == up.sizes() && gate.scalar_type() == up.scalar_type());
    return SwigluFunction::apply(gate, up);
}

}  // namespace ether::ops
