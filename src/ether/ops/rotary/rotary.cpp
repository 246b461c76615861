#include "ether/ops/rotary/rotary.h"

#include <ATen/Functions.h>

#include "ether/core/error.h"
#include "ether/ops/isa.h"
#include "ether/ops/vector.h"

namespace ether::ops {
namespace {

class Rotary : public RowOpOf<Rotary> {
  public:
    Rotary(const at::Tensor& positions, const at::Tensor& cos, const at::Tensor& sin, int64_t heads)
        : positions_(positions), cos_(cos), sin_(sin), heads_(heads), half_(cos.size(1)) {}

    bool reads_arguments(bool) const override { return false; }

    at::Tensor composed(at::TensorList x, at::TensorList) const override {
        const auto cos = cos_.index_select(0, positions_).unsqueeze(1),
                   sin = sin_.index_select(0, positions_).unsqueeze(1);
        const auto halves = x[0].reshape({-1, heads_, 2, half_}).unbind(2);
        return at::stack({halves[0] * cos - halves[1] * sin, halves[1] * cos + halves[0] * sin}, 2)
            .view(x[0].sizes());
    }

    std::optional<DeviceCode> device_code() const override {
        return DeviceCode{.name = "Rotary",
                          .constants = {static_cast<int>(half_)},
                          .piece = half_,
                          .distance = half_,
                          .words = {address(positions_), address(cos_), address(sin_)}};
    }

    template <typename P>
    void run(const RowTile<P>& tile, P* y) const {
        rotate(tile, tile.x[0], y, P{1});
    }
    // The transpose rotates back.
    template <typename P>
    void run_back(const RowTile<P>& tile, const RowGradients<P>& grad) const {
        rotate(tile, grad.y, grad.x[0], P{-1});
    }

  private:
    template <typename P>
    void rotate(const RowTile<P>& tile, const P* from, P* to, P sign) const {
        const auto* positions = positions_.const_data_ptr<int64_t>() + tile.first;
        const auto *cos = cos_.const_data_ptr<P>(), *sin = sin_.const_data_ptr<P>();
        for_best_isa([&](auto isa) {
            for (int64_t t = 0; t < tile.count; ++t)
                for (int64_t head = 0; head < heads_; ++head) {
                    const int64_t at = (t * heads_ + head) * 2 * half_, angle = positions[t] * half_;
                    for_vectors<P>(isa, half_, half_, [&](int64_t j, const auto& lanes) {
                        const auto u = load<P>(from + at + j, lanes),
                                   v = load<P>(from + at + half_ + j, lanes),
                                   c = load<P>(cos + angle + j, lanes),
                                   s = load<P>(sin + angle + j, lanes) * sign;
                        store<P>(to + at + j, u * c - v * s, lanes);
                        store<P>(to + at + half_ + j, v * c + u * s, lanes);
                    });
                }
        });
    }

    at::Tensor positions_, cos_, sin_;
    int64_t heads_, half_;
};

}  // namespace

Rows::Value rotary(Rows& rows, Rows::Value x, const at::Tensor& positions, const at::Tensor& cos,
                   const at::Tensor& sin) {
    ETHER_ASSERT(rows.width(x) % (2 * cos.size(1)) == 0 && positions.size(0) == rows.tokens());
    ETHER_ASSERT(cos.scalar_type() == rows.compute_dtype() && cos.is_contiguous() && sin.is_contiguous());
    ETHER_ASSERT(address(cos) % 16 == 0 && address(sin) % 16 == 0);  // read so many bytes at a time
    return rows.apply(std::make_shared<Rotary>(positions, cos, sin, rows.width(x) / (2 * cos.size(1))), {x});
}

}  // namespace ether::ops
