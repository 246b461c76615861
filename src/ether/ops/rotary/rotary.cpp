#include "ether/ops/rotary/rotary.h"

#include <ATen/ops/empty_like.h>
#include <torch/csrc/autograd/custom_function.h>

#include "ether/core/parallel.h"
#include "ether/ops/dispatch.h"

namespace ether::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// sign = 1 rotates forward, -1 back (the transpose, for gradients).
at::Tensor rotated(const at::Tensor& input, const at::Tensor& positions, const at::Tensor& cos,
                   const at::Tensor& sin, int sign) {
    const auto x = input.contiguous();
    auto y = at::empty_like(x);
    const int64_t half = cos.size(1), heads = x.size(1) / (2 * half), width = x.size(1);
    dispatch(x.scalar_type(), "rotary", [&](auto type) {
        using X = decltype(type);
        using A = accumulate_t<X>;
        const X* from = x.template const_data_ptr<X>();
        X* to = y.template mutable_data_ptr<X>();
        const A *c = cos.template const_data_ptr<A>(), *s = sin.template const_data_ptr<A>();
        const int64_t* position = positions.const_data_ptr<int64_t>();
        parallel_for(x.size(0), 16, [&](int, int64_t begin, int64_t end) {
            for (int64_t t = begin; t < end; ++t) {
                const A *ct = c + position[t] * half, *st = s + position[t] * half;
                for (int64_t head = 0; head < heads; ++head) {
                    const X *a = from + t * width + head * 2 * half, *b = a + half;
                    X *out_a = to + t * width + head * 2 * half, *out_b = out_a + half;
#pragma omp simd
                    for (int64_t j = 0; j < half; ++j) {
                        const A u = static_cast<A>(a[j]), v = static_cast<A>(b[j]),
                                sine = static_cast<A>(sign) * st[j];
                        out_a[j] = static_cast<X>(u * ct[j] - v * sine);
                        out_b[j] = static_cast<X>(v * ct[j] + u * sine);
                    }
                }
            }
        });
    });
    return y;
}

struct RotaryFunction : torch::autograd::Function<RotaryFunction> {
    static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& positions,
                              const at::Tensor& cos, const at::Tensor& sin) {
        context->save_for_backward({positions, cos, sin});
        return rotated(x, positions, cos, sin, 1);
    }
    static variable_list backward(AutogradContext* context, variable_list grads) {
        const auto saved = context->get_saved_variables();
        return {rotated(grads[0], saved[0], saved[1], saved[2], -1), {}, {}, {}};
    }
};

}  // namespace

at::Tensor rotary(const at::Tensor& x, const at::Tensor& positions, const at::Tensor& cos,
                  const at::Tensor& sin) {
    ETHER_ASSERT(x.dim() == 2 && x.size(1) % (2 * cos.size(1)) == 0 && positions.size(0) == x.size(0));
    return RotaryFunction::apply(x, positions, cos, sin);
}

}  // namespace ether::ops
