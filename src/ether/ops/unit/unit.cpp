#include "ether/ops/unit/unit.h"

#include <ATen/ops/empty_like.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cmath>

#include "ether/ops/composed.h"
#include "ether/ops/dispatch.h"
#include "ether/ops/vector_math.h"

namespace ether::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// These tensors hold one layer's parameters, a few thousand values: one thread, no parallel loop.
struct UnitFunction : torch::autograd::Function<UnitFunction> {
    static at::Tensor forward(AutogradContext* context, const at::Tensor& input) {
        const auto v = input.contiguous();
        auto out = at::empty_like(v);
        const int64_t size = v.size(-1), count = v.numel() / size;
        dispatch(v.scalar_type(), "unit", [&](auto type) {
            using P = decltype(type);
            if constexpr (std::is_floating_point_v<P>) {
                const P* from = v.template const_data_ptr<P>();
                P* to = out.template mutable_data_ptr<P>();
                for (int64_t i = 0; i < count; ++i, from += size, to += size) {
                    const P norm = std::sqrt(dot(from, from, size));
                    if (!(norm > 0) || !std::isfinite(norm))
                        fail(ErrorKind::numeric,
                             "a reflection's vector has length {}, so it has no direction; "
                             "lower the learning rate or start again",
                             norm);
                    for (int64_t j = 0; j < size; ++j) to[j] = from[j] / norm;
                }
            }
        });
        context->save_for_backward({v, out});
        return out;
    }

    static variable_list backward(AutogradContext* context, variable_list grads) {
        const auto saved = context->get_saved_variables();
        const auto &v = saved[0], &out = saved[1];
        const auto grad = grads[0].contiguous();
        auto result = at::empty_like(v);
        const int64_t size = v.size(-1), count = v.numel() / size;
        dispatch(v.scalar_type(), "unit", [&](auto type) {
            using P = decltype(type);
            if constexpr (std::is_floating_point_v<P>) {
                const P *from = v.template const_data_ptr<P>(), *unit = out.template const_data_ptr<P>();
                const P* g = grad.template const_data_ptr<P>();
                P* to = result.template mutable_data_ptr<P>();
                for (int64_t i = 0; i < count; ++i, from += size, unit += size, g += size, to += size) {
                    const P inverse = 1 / std::sqrt(dot(from, from, size)), along = dot(unit, g, size);
                    for (int64_t j = 0; j < size; ++j) to[j] = (g[j] - unit[j] * along) * inverse;
                }
            }
        });
        return {result};
    }
};

}  // namespace

at::Tensor unit(const at::Tensor& v) {
    ETHER_ASSERT(v.scalar_type() == at::kFloat || v.scalar_type() == at::kDouble);
    if (runs_composed(v)) return v / v.square().sum(-1, /*keepdim=*/true).sqrt();
    return UnitFunction::apply(v);
}

}  // namespace ether::ops
