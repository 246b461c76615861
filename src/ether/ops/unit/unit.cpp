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

// x (rows, size) in consecutive stacks of (terms, n, size): one node in place of a split and a view for each.
struct StacksFunction : torch::autograd::Function<StacksFunction> {
    static variable_list forward(AutogradContext*, const at::Tensor& x, const std::vector<int64_t>& terms,
                                 const std::vector<int64_t>& rows) {
        const at::AutoDispatchBelowADInplaceOrView guard;  // pieces of one memory, not views of each other
        auto stacks = x.split_with_sizes(rows);
        for (size_t k = 0; k < stacks.size(); ++k) stacks[k] = stacks[k].view({terms[k], -1, x.size(1)});
        return stacks;
    }

    static variable_list backward(AutogradContext*, variable_list grads) {
        for (auto& grad : grads) grad = grad.flatten(0, 1);
        return {at::cat(grads), {}, {}};
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
        std::vector<int64_t> terms, rows;
        for (const size_t i : members) {
            for (const auto& v : stacks[i]) {
                ETHER_ASSERT(v.dim() == 2 && v.sizes() == stacks[i].front().sizes());
                vectors.push_back(v);
            }
            terms.push_back(static_cast<int64_t>(stacks[i].size()));
            rows.push_back(terms.back() * stacks[i].front().size(0));
        }
        auto directions = StacksFunction::apply(unit(at::cat(vectors)), terms, rows);
        for (size_t k = 0; k < members.size(); ++k) result[members[k]] = std::move(directions[k]);
    }
    return result;
}

}  // namespace ether::ops
