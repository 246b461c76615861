#include "ether/ops/dropout/dropout.h"

#include <ATen/ops/empty_like.h>
#include <torch/csrc/autograd/custom_function.h>

#include "ether/core/parallel.h"
#include "ether/ops/dispatch.h"

namespace ether::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

at::Tensor masked(const at::Tensor& input, double p, uint64_t key) {
    const auto x = input.contiguous();
    auto y = at::empty_like(x);
    dispatch(x.scalar_type(), "dropout", [&](auto type) {
        using X = decltype(type);
        using A = accumulate_t<X>;
        const X* from = x.template const_data_ptr<X>();
        X* to = y.template mutable_data_ptr<X>();
        const uint32_t threshold = keep_threshold(p);
        const A scale = static_cast<A>(1 / (1 - p));
        parallel_for(x.numel(), 8192, [&](int, int64_t begin, int64_t end) {
#pragma omp simd
            for (int64_t i = begin; i < end; ++i)
                to[i] = keep(key, static_cast<uint64_t>(i), threshold)
                            ? static_cast<X>(static_cast<A>(from[i]) * scale)
                            : X(0);
        });
    });
    return y;
}

struct DropoutFunction : torch::autograd::Function<DropoutFunction> {
    static at::Tensor forward(AutogradContext* context, const at::Tensor& x, double p, int64_t key) {
        context->saved_data["p"] = p;
        context->saved_data["key"] = key;
        return masked(x, p, static_cast<uint64_t>(key));
    }
    static variable_list backward(AutogradContext* context, variable_list grads) {
        return {masked(grads[0], context->saved_data["p"].toDouble(),
                       static_cast<uint64_t>(context->saved_data["key"].toInt())),
                {},
                {}};
    }
};

}  // namespace

at::Tensor dropout(const at::Tensor& x, double p, const Random& random) {
    ETHER_ASSERT(p >= 0 && p < 1);
    return p == 0 ? x : DropoutFunction::apply(x, p, static_cast<int64_t>(random.key()));
}

}  // namespace ether::ops
