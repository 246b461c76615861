#include "ether/ops/unit/unit.h"

#include <ATen/Functions.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cmath>
#include <map>

#include "ether/core/error.h"
#include "ether/ops/rows/rows.h"
#include "ether/ops/vector_math.h"

namespace ether::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

class Unit : public RowOpOf<Unit> {
  public:
    explicit Unit(int64_t size) : size_(size) {}

    bool reads_arguments(bool) const override { return true; }

    at::Tensor composed(at::TensorList x, at::TensorList) const override {
        return x[0] / x[0].square().sum(-1, /*keepdim=*/true).sqrt();
    }

    std::optional<DeviceCode> device_code() const override { return DeviceCode{.name = "Unit", .sums = 2}; }

    template <typename P>
    void run(const RowTile<P>& tile, P* y) const {
        for (int64_t i = 0; i < tile.count; ++i) {
            const P* x = tile.x[0] + i * size_;
            const P norm = std::sqrt(dot(x, x, size_));
            if (!(norm > 0) || !std::isfinite(norm))
                fail(ErrorKind::numeric,
                     "a reflection's vector has length {}, so it has no direction; "
                     "lower the learning rate or start again",
                     norm);
            for (int64_t j = 0; j < size_; ++j) y[i * size_ + j] = x[j] / norm;
        }
    }

    // With u = x / |x|: grad_x = (g - u (u . g)) / |x|.
    template <typename P>
    void run_back(const RowTile<P>& tile, const RowGradients<P>& grad) const {
        for (int64_t i = 0; i < tile.count; ++i) {
            const P *x = tile.x[0] + i * size_, *g = grad.y + i * size_;
            const P inverse = 1 / std::sqrt(dot(x, x, size_)), along = dot(x, g, size_) * inverse * inverse;
            for (int64_t j = 0; j < size_; ++j) grad.x[0][i * size_ + j] = (g[j] - x[j] * along) * inverse;
        }
    }

  private:
    int64_t size_;
};

// The directions of vectors of one size, each (n, size), stacked by so many: (terms, n, size). One node in
// place of a thousand small ones.
struct UnitsFunction : torch::autograd::Function<UnitsFunction> {
    static variable_list forward(AutogradContext* context, at::TensorList vectors,
                                 const std::vector<int64_t>& terms) {
        const at::AutoDispatchBelowADInplaceOrView guard;  // pieces of one memory, not views of each other
        const auto stack = at::cat(vectors), directions = unit(stack);
        context->save_for_backward({directions, stack.norm(2, {-1}, /*keepdim=*/true)});
        variable_list result;
        std::vector<int64_t> rows;
        int64_t first = 0;
        for (size_t k = 0; const int64_t count : terms) {
            const int64_t n = vectors[k].size(0);
            result.push_back(directions.narrow(0, first, count * n).view({count, n, -1}));
            rows.insert(rows.end(), static_cast<size_t>(count), n);
            first += count * n;
            k += static_cast<size_t>(count);
        }
        context->saved_data["rows"] = rows;
        return result;
    }

    // With u = x / |x|: grad_x = (g - u (u . g)) / |x|.
    static variable_list backward(AutogradContext* context, const variable_list& grads) {
        const auto saved = context->get_saved_variables();
        const auto &directions = saved[0], &norms = saved[1];
        std::vector<at::Tensor> pieces;
        for (const auto& grad : grads) pieces.push_back(grad.reshape({-1, directions.size(1)}));
        const auto g = at::cat(pieces);
        const auto grad = (g - directions * (directions * g).sum(-1, /*keepdim=*/true)) / norms;
        auto result = grad.split_with_sizes(context->saved_data["rows"].toIntVector());
        result.emplace_back();  // of terms
        return result;
    }
};

}  // namespace

at::Tensor unit(const at::Tensor& v) {
    ETHER_ASSERT(v.scalar_type() == at::kFloat || v.scalar_type() == at::kDouble);
    Rows rows;
    const auto x = rows.input(v.reshape({-1, v.size(-1)}));
    return rows.run(rows.apply(std::make_shared<Unit>(v.size(-1)), {x})).view(v.sizes());
}

std::vector<at::Tensor> units(const std::vector<std::vector<at::Tensor>>& stacks) {
    std::map<int64_t, std::vector<size_t>> by_size;
    for (size_t i = 0; i < stacks.size(); ++i) by_size[stacks[i].front().size(-1)].push_back(i);
    std::vector<at::Tensor> result(stacks.size());
    for (const auto& [size, members] : by_size) {
        std::vector<at::Tensor> vectors;
        std::vector<int64_t> terms;
        for (const size_t i : members) {
            for (const auto& v : stacks[i]) {
                ETHER_ASSERT(v.dim() == 2 && v.sizes() == stacks[i].front().sizes());
                vectors.push_back(v);
            }
            terms.push_back(static_cast<int64_t>(stacks[i].size()));
        }
        auto directions = UnitsFunction::apply(at::TensorList(vectors), terms);
        for (size_t k = 0; k < members.size(); ++k) result[members[k]] = std::move(directions[k]);
    }
    return result;
}

}  // namespace ether::ops
