#include "ether/ops/permute/permute.h"

#include <ATen/Functions.h>

#include "ether/core/error.h"

namespace ether::ops {
namespace {

class Permutation : public RowOpOf<Permutation> {
  public:
    explicit Permutation(const at::Tensor& order) : order_(order) {}

    bool reads_arguments(bool) const override { return false; }

    at::Tensor composed(at::TensorList x, at::TensorList) const override {
        return x[0].index_select(1, order_);
    }

    template <typename P>
    void run(const RowTile<P>& tile, P* y) const {
        each(tile.count, [&](int64_t to, int64_t from) { y[to] = tile.x[0][from]; });
    }
    template <typename P>
    void run_back(const RowTile<P>& tile, const RowGradients<P>& grad) const {
        each(tile.count, [&](int64_t to, int64_t from) { grad.x[0][from] = grad.y[to]; });
    }

  private:
    template <typename Body>
    void each(int64_t tokens, Body&& body) const {
        const auto* order = order_.const_data_ptr<int64_t>();
        const int64_t width = order_.numel();
        for (int64_t t = 0; t < tokens; ++t)
            for (int64_t j = 0; j < width; ++j) body(t * width + j, t * width + order[j]);
    }

    at::Tensor order_;
};

}  // namespace

Rows::Value permute(Rows& rows, Rows::Value x, const at::Tensor& order) {
    ETHER_ASSERT(order.numel() == rows.width(x) && order.scalar_type() == at::kLong);
    return rows.apply(std::make_shared<Permutation>(order.contiguous()), {x});
}

}  // namespace ether::ops
