#include "ether/ops/dropout/dropout.h"

#include "ether/core/error.h"
#include "ether/ops/isa.h"

namespace ether::ops {
namespace {

class Dropout : public RowOpOf<Dropout> {
  public:
    Dropout(double p, uint64_t key, int64_t first_row, int64_t width)
        : p_(p), key_(key), first_row_(first_row), width_(width) {}

    bool reads_arguments(bool) const override { return false; }

    template <typename P>
    void run(const RowTile<P>& tile, P* y) const {
        mask(tile, tile.x[0], y);
    }
    template <typename P>
    void run_back(const RowTile<P>& tile, const RowGradients<P>& grad) const {
        mask(tile, grad.y, grad.x[0]);
    }

  private:
    template <typename P>
    void mask(const RowTile<P>& tile, const P* from, P* to) const {
        const auto first = static_cast<uint64_t>((first_row_ + tile.first) * width_);
        const auto scale = static_cast<P>(1 / (1 - p_));
        for_best_isa([&] {
            for_kept(key_, first, tile.count * width_, keep_threshold(p_),
                     [=](int64_t i, bool kept) { to[i] = kept ? from[i] * scale : P{0}; });
        });
    }

    double p_;
    uint64_t key_;
    int64_t first_row_, width_;
};

}  // namespace

Rows::Value dropout(Rows& rows, Rows::Value x, double p, const Random& random, int64_t first_row) {
    ETHER_ASSERT(p >= 0 && p < 1);
    return p == 0 ? x : rows.apply(std::make_shared<Dropout>(p, random.key(), first_row, rows.width(x)), {x});
}

at::Tensor dropout(const at::Tensor& x, double p, const Random& random, int64_t first_row) {
    Rows rows;
    return rows.run(dropout(rows, rows.input(x), p, random, first_row));
}

}  // namespace ether::ops
