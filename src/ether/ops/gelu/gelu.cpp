#include "ether/ops/gelu/gelu.h"

#include <ATen/Functions.h>

#include <numbers>

#include "ether/ops/isa.h"
#include "ether/ops/vector_math.h"

namespace ether::ops {
namespace {

class Gelu : public RowOpOf<Gelu> {
  public:
    explicit Gelu(int64_t width) : width_(width) {}

    bool reads_arguments(bool) const override { return true; }

    at::Tensor composed(at::TensorList x, at::TensorList) const override { return at::gelu(x[0]); }

    std::optional<DeviceCode> device_code() const override { return DeviceCode{.name = "Gelu"}; }

    template <typename P>
    void run(const RowTile<P>& tile, P* y) const {
        constexpr P kRoot = std::numbers::sqrt2_v<P> / 2;
        for_values<P>(tile.count * width_, [&](int64_t j, const auto& lanes) {
            const auto x = load<P>(tile.x[0] + j, lanes);
            std::remove_const_t<decltype(x)> gaussian;
            store<P>(y + j, x * (1 + erf(x * kRoot, &gaussian)) / 2, lanes);
        });
    }

    // Phi(x) + x phi(x), phi(x) = exp(-x^2 / 2) / sqrt(2 pi).
    template <typename P>
    void run_back(const RowTile<P>& tile, const RowGradients<P>& grad) const {
        constexpr P kRoot = std::numbers::sqrt2_v<P> / 2, kDensity = kRoot * std::numbers::inv_sqrtpi_v<P>;
        for_values<P>(tile.count * width_, [&](int64_t j, const auto& lanes) {
            const auto x = load<P>(tile.x[0] + j, lanes);
            std::remove_const_t<decltype(x)> gaussian;
            const auto below = (1 + erf(x * kRoot, &gaussian)) / 2;
            store<P>(grad.x[0] + j, load<P>(grad.y + j, lanes) * (below + x * gaussian * kDensity), lanes);
        });
    }

  private:
    int64_t width_;
};

}  // namespace

Rows::Value gelu(Rows& rows, Rows::Value x) { return rows.apply(std::make_shared<Gelu>(rows.width(x)), {x}); }

}  // namespace ether::ops
