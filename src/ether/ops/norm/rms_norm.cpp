#include "ether/ops/norm/rms_norm.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cmath>

#include "ether/core/parallel.h"
#include "ether/ops/dispatch.h"
#include "ether/ops/isa.h"

namespace ether::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int64_t kGrain = 16;

struct RmsNormFunction : torch::autograd::Function<RmsNormFunction> {
    static at::Tensor forward(AutogradContext* context, const at::Tensor& input, const at::Tensor& weight,
                              double eps) {
        const auto x = input.contiguous(), w = weight.to(x.scalar_type()).contiguous();
        const int64_t tokens = x.size(0), width = x.size(1);
        auto y = at::empty_like(x);
        auto inverse = at::empty({tokens}, x.options().dtype(accumulate_dtype(x.scalar_type())));
        dispatch(x.scalar_type(), "rms_norm", [&](auto type) {
            using X = decltype(type);
            using A = accumulate_t<X>;
            const X *from = x.template const_data_ptr<X>(), *scale = w.template const_data_ptr<X>();
            X* to = y.template mutable_data_ptr<X>();
            A* r = inverse.template mutable_data_ptr<A>();
            parallel_for(tokens, kGrain, [&](int, int64_t begin, int64_t end) {
                for_best_isa([&] {
                    for (int64_t t = begin; t < end; ++t) {
                        const X* row = from + t * width;
                        A sum = 0;
#pragma omp simd reduction(+ : sum)
                        for (int64_t j = 0; j < width; ++j)
                            sum += static_cast<A>(row[j]) * static_cast<A>(row[j]);
                        r[t] = 1 / std::sqrt(sum / static_cast<A>(width) + static_cast<A>(eps));
                        X* out = to + t * width;
#pragma omp simd
                        for (int64_t j = 0; j < width; ++j)
                            out[j] = static_cast<X>(static_cast<X>(static_cast<A>(row[j]) * r[t]) * scale[j]);
                    }
                });
            });
        });
        context->save_for_backward({x, weight, inverse});
        return y;
    }

    // With n = x r: grad_x = r (w g - n mean(w g n)), grad_w = sum over tokens of g n.
    static variable_list backward(AutogradContext* context, variable_list grads) {
        const auto saved = context->get_saved_variables();
        const auto &x = saved[0], &weight = saved[1], &inverse = saved[2];
        const auto w = weight.to(x.scalar_type()).contiguous(), g = grads[0].contiguous();
        const int64_t tokens = x.size(0), width = x.size(1);
        auto grad_x = at::empty_like(x);
        dispatch(x.scalar_type(), "rms_norm", [&](auto type) {
            using X = decltype(type);
            using A = accumulate_t<X>;
            const X *from = x.template const_data_ptr<X>(), *scale = w.template const_data_ptr<X>();
            const X* grad = g.template const_data_ptr<X>();
            const A* r = inverse.template const_data_ptr<A>();
            X* to = grad_x.template mutable_data_ptr<X>();
            parallel_for(tokens, kGrain, [&](int, int64_t begin, int64_t end) {
                for_best_isa([&] {
                    for (int64_t t = begin; t < end; ++t) {
                        const X *row = from + t * width, *grad_row = grad + t * width;
                        A sum = 0;
#pragma omp simd reduction(+ : sum)
                        for (int64_t j = 0; j < width; ++j)
                            sum += static_cast<A>(grad_row[j]) * static_cast<A>(scale[j]) *
                                   static_cast<A>(row[j]);
                        const A mean = sum * r[t] * r[t] / static_cast<A>(width);
                        X* out = to + t * width;
#pragma omp simd
                        for (int64_t j = 0; j < width; ++j)
                            out[j] = static_cast<X>(r[t] *
                                                    (static_cast<A>(grad_row[j]) * static_cast<A>(scale[j]) -
                                                     static_cast<A>(row[j]) * mean));
                    }
                });
            });
        });
        at::Tensor grad_weight;
        if (context->needs_input_grad(1)) {
            const auto dtype = inverse.scalar_type();
            grad_weight = (g.to(dtype) * x.to(dtype) * inverse.unsqueeze(1)).sum(0).to(weight.scalar_type());
        }
        return {grad_x, grad_weight, {}};
    }
};

}  // namespace

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps) {
    ETHER_ASSERT(x.dim() == 2 && weight.dim() == 1 && weight.size(0) == x.size(1));
    return RmsNormFunction::apply(x, weight, eps);
}

}  // namespace ether::ops
