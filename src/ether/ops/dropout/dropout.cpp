#include "ether/ops/dropout/dropout.h"

#include <ATen/ops/empty_like.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>

#include "ether/core/parallel.h"
#include "ether/ops/dispatch.h"
#include "ether/ops/isa.h"

namespace ether::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

at::Tensor masked(const at::Tensor& input, double p, uint64_t key, int64_t first_row) {
    const auto x = input.contiguous();
    auto y = at::empty_like(x);
    dispatch(x.scalar_type(), "dropout", [&](auto type) {
        using X = decltype(type);
        using A = accumulate_t<X>;
        const X* from = x.template const_data_ptr<X>();
        X* to = y.template mutable_data_ptr<X>();
        const uint32_t threshold = keep_threshold(p);
        const A scale = static_cast<A>(1 / (1 - p));
        const int64_t first = first_row * (x.numel() / std::max<int64_t>(1, x.size(0)));
        parallel_for(x.numel(), 8192, [&](int, int64_t begin, int64_t end) {
            for_best_isa([&] {
                const X* source = from + begin;
                X* target = to + begin;
                for_kept(key, static_cast<uint64_t>(first + begin), end - begin, threshold,
                         [=](int64_t i, bool kept) {
                             target[i] = kept ? static_cast<X>(static_cast<A>(source[i]) * scale) : X(0);
                         });
            });
        });
    });
    return y;
}

struct DropoutFunction : torch::autograd::Function<DropoutFunction> {
    static at::Tensor forward(AutogradContext* context, const at::Tensor& x, double p, int64_t key,
                              int64_t first_row) {
        context->saved_data["p"] = p;
        context->saved_data["first_row"] = first_row;
        context->saved_data["key"] = key;
        return masked(x, p, static_cast<uint64_t>(key), first_row);
    }
    static variable_list backward(AutogradContext* context, variable_list grads) {
        auto& data = context->saved_data;
        return {masked(grads[0], data["p"].toDouble(), static_cast<uint64_t>(data["key"].toInt()),
                       data["first_row"].toInt()),
                {},
                {},
                {}};
    }
};

}  // namespace

at::Tensor dropout(const at::Tensor& x, double p, const Random& random, int64_t first_row) {
    ETHER_ASSERT(p >= 0 && p < 1);
    return p == 0 ? x : DropoutFunction::apply(x, p, static_cast<int64_t>(random.key()), first_row);
}

}  // namespace ether::ops
