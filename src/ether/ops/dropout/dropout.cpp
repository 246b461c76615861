#include "ether/ops/dropout/dropout.h"

#include <ATen/Functions.h>

#include "ether/core/error.h"
#include "ether/ops/isa.h"

namespace ether::ops {
namespace {

class Dropout : public RowOpOf<Dropout> {
  public:
    Dropout(double p, uint64_t key, int64_t first_row, int64_t width)
        : p_(p), key_(key), first_row_(first_row), width_(width) {}

    bool reads_arguments(bool) const override { return false; }

    at::Tensor composed(at::TensorList x, at::TensorList) const override {
        const auto index = at::arange(x[0].numel(), x[0].options().dtype(at::kLong)) + first_row_ * width_;
        return x[0] * keep_scales(key_, index, p_, x[0].scalar_type()).view(x[0].sizes());
    }

    std::optional<DeviceCode> device_code() const override {
        return DeviceCode{.name = "Dropout",
                          .words = {key_, static_cast<uint64_t>(first_row_), keep_threshold(p_)},
                          .numbers = {1 / (1 - p_)}};
    }

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

// keep() in 64-bit integers, of which the lower halves count.
at::Tensor keep_scales(uint64_t key, const at::Tensor& index, double p, at::ScalarType dtype) {
    constexpr int64_t kHalf = 0xffffffff;
    const auto half = [](uint64_t bits) { return static_cast<int64_t>(bits & 0xffffffff); };
    auto x =
        (index.bitwise_and(kHalf).bitwise_xor(half(key)) + at::bitwise_right_shift(index, 32) * 0x9e3779b9)
            .bitwise_and(kHalf);
    const auto mix = [&](int64_t shift, int64_t factor) {
        x = (x.bitwise_xor(at::bitwise_right_shift(x, shift)) * factor).bitwise_and(kHalf);
    };
    mix(17, 0xed5ad4bb);
    x = x.bitwise_xor(half(key >> 32));
    mix(11, 0xac4c1b51);
    mix(15, 0x31848bab);
    const auto kept =
        x.bitwise_xor(at::bitwise_right_shift(x, 14)).le(static_cast<int64_t>(keep_threshold(p)));
    return kept.to(dtype) * (1 / (1 - p));
}

Rows::Value dropout(Rows& rows, Rows::Value x, double p, const Random& random, int64_t first_row) {
    ETHER_ASSERT(p >= 0 && p < 1);
    return p == 0 ? x : rows.apply(std::make_shared<Dropout>(p, random.key(), first_row, rows.width(x)), {x});
}

at::Tensor dropout(const at::Tensor& x, double p, const Random& random, int64_t first_row) {
    Rows rows;
    return rows.run(dropout(rows, rows.input(x), p, random, first_row));
}

}  // namespace ether::ops
