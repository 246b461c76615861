#include "ether/ops/permute/permute.h"

#include <ATen/Functions.h>

#include <cstring>

#include "ether/core/error.h"

namespace ether::ops {
namespace {

class Permutation : public RowOpOf<Permutation> {
  public:
    explicit Permutation(const at::Tensor& order)
        : order_(order), run_(order.is_cpu() ? longest_run(order) : 1) {}

    bool reads_arguments(bool) const override { return false; }

    at::Tensor composed(at::TensorList x, at::TensorList) const override {
        return x[0].index_select(1, order_);
    }

    template <typename P>
    void run(const RowTile<P>& tile, P* y) const {
        move(tile.count, tile.x[0], y, [](const P* x, P* to, int64_t j, int64_t at, auto run) {
            std::memcpy(to + j, x + at, run * sizeof(P));
        });
    }
    template <typename P>
    void run_back(const RowTile<P>& tile, const RowGradients<P>& grad) const {
        move(tile.count, grad.y, grad.x[0], [](const P* g, P* to, int64_t j, int64_t at, auto run) {
            std::memcpy(to + at, g + j, run * sizeof(P));
        });
    }

  private:
    static constexpr int64_t kLongestRun = 16;

    // The largest power of two such that features which begin at its multiples stay side by side.
    static int64_t longest_run(const at::Tensor& order) {
        const auto* from = order.const_data_ptr<int64_t>();
        const auto keeps = [&](int64_t run) {
            if (order.numel() % run != 0) return false;
            for (int64_t j = 0; j < order.numel(); j += run)
                for (int64_t i = 1; i < run; ++i)
                    if (from[j + i] != from[j] + i) return false;
            return true;
        };
        int64_t run = 1;
        while (run < kLongestRun && keeps(2 * run)) run *= 2;
        return run;
    }

    // Calls body(a row, where it goes, j, order[j], length of a run) for each run of each row.
    template <typename P, typename Body>
    void move(int64_t tokens, const P* x, P* to, Body&& body) const {
        const auto* order = order_.const_data_ptr<int64_t>();
        const int64_t width = order_.numel();
        const auto in_runs = [&]<int64_t run>(std::integral_constant<int64_t, run> length) {
            for (int64_t t = 0; t < tokens; ++t)
                for (int64_t j = 0; j < width; j += run)
                    body(x + t * width, to + t * width, j, order[j], length);
        };
        if (run_ == kLongestRun) return in_runs(std::integral_constant<int64_t, kLongestRun>());
        if (run_ == 8) return in_runs(std::integral_constant<int64_t, 8>());
        if (run_ == 4) return in_runs(std::integral_constant<int64_t, 4>());
        if (run_ == 2) return in_runs(std::integral_constant<int64_t, 2>());
        in_runs(std::integral_constant<int64_t, 1>());
    }

    at::Tensor order_;
    int64_t run_;
};

}  // namespace

Rows::Value permute(Rows& rows, Rows::Value x, const at::Tensor& order) {
    ETHER_ASSERT(order.numel() == rows.width(x) && order.scalar_type() == at::kLong);
    return rows.apply(std::make_shared<Permutation>(order.contiguous()), {x});
}

}  // namespace ether::ops
