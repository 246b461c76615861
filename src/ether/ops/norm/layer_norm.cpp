#include "ether/ops/norm/layer_norm.h"

#include <ATen/Functions.h>

#include <cmath>

#include "ether/core/error.h"
#include "ether/ops/isa.h"
#include "ether/ops/vector.h"

namespace ether::ops {
namespace {

class LayerNorm : public RowOpOf<LayerNorm> {
  public:
    LayerNorm(const at::Tensor& weight, const at::Tensor& bias, double eps)
        : eps_(eps), width_(weight.size(0)) {
        parameters = {weight, bias};
    }

    bool reads_arguments(bool) const override { return true; }

    at::Tensor composed(at::TensorList x, at::TensorList parameters) const override {
        return at::layer_norm(x[0], {width_}, parameters[0], parameters[1], eps_);
    }

    std::optional<DeviceCode> device_code() const override {
        return DeviceCode{.name = "LayerNorm", .sums = 2, .numbers = {eps_}, .held = 2};
    }

    template <typename P>
    void run(const RowTile<P>& tile, P* y) const {
        for_best_isa([&](auto isa) {
            for (int64_t t = 0; t < tile.count; ++t) {
                const P* x = tile.x[0] + t * width_;
                const auto [mean, inverse] = moments(isa, x);
                for_vectors<P>(isa, width_, width_, [&](int64_t j, const auto& lanes) {
                    const auto normal = (load<P>(x + j, lanes) - mean) * inverse;
                    store<P>(y + t * width_ + j,
                             normal * load<P>(tile.parameters[0] + j, lanes) +
                                 load<P>(tile.parameters[1] + j, lanes),
                             lanes);
                });
            }
        });
    }

    // With n = (x - mean) r: grad_x = r (w g - mean(w g) - n mean(w g n)); grad_w = sum over tokens of g n,
    // grad_b of g.
    template <typename P>
    void run_back(const RowTile<P>& tile, const RowGradients<P>& grad) const {
        for_best_isa([&](auto isa) {
            for (int64_t t = 0; t < tile.count; ++t) {
                const P *x = tile.x[0] + t * width_, *g = grad.y + t * width_;
                const auto [mean, inverse] = moments(isa, x);
                auto sum = zeros<P>(isa), along = sum;
                for_vectors<P>(isa, width_, width_, [&](int64_t j, const auto& lanes) {
                    const auto gj = load<P>(g + j, lanes), normal = (load<P>(x + j, lanes) - mean) * inverse,
                               wg = gj * load<P>(tile.parameters[0] + j, lanes);
                    sum += wg;
                    along += wg * normal;
                    auto add = [&](P* to, const auto& more) {
                        if (to) store<P>(to + j, load<P>(to + j, lanes) + more, lanes);
                    };
                    add(grad.parameters[0], gj * normal);
                    add(grad.parameters[1], gj);
                });
                if (!grad.x[0]) continue;
                const P of_wg = sum_of<P>(sum) / static_cast<P>(width_),
                        of_wgn = sum_of<P>(along) / static_cast<P>(width_);
                for_vectors<P>(isa, width_, width_, [&](int64_t j, const auto& lanes) {
                    const auto normal = (load<P>(x + j, lanes) - mean) * inverse,
                               wg = load<P>(g + j, lanes) * load<P>(tile.parameters[0] + j, lanes);
                    store<P>(grad.x[0] + t * width_ + j, (wg - of_wg - normal * of_wgn) * inverse, lanes);
                });
            }
        });
    }

  private:
    template <typename P>
    struct Moments {
        P mean, inverse;
    };
    // In two passes: the variance of a large mean would lose its digits in one.
    template <int bytes, typename P>
    ETHER_INLINE Moments<P> moments(Isa<bytes> isa, const P* x) const {
        Vector<P, bytes> sum = {}, squares = {};
        for_vectors<P>(isa, width_, width_,
                       [&](int64_t j, const auto& lanes) { sum += load<P>(x + j, lanes); });
        const P mean = sum_of<P>(sum) / static_cast<P>(width_);
        P rest = 0;  // lanes beyond the row would count as -mean
        for_vectors<P>(isa, width_, width_, [&](int64_t j, const auto& lanes) {
            const auto d = load<P>(x + j, lanes) - mean;
            if constexpr (requires { lanes.count; })
                for (int64_t lane = 0; lane < lanes.count; ++lane) rest += d[lane] * d[lane];
            else
                squares += d * d;
        });
        const P variance = (sum_of<P>(squares) + rest) / static_cast<P>(width_);
        return {mean, 1 / std::sqrt(variance + static_cast<P>(eps_))};
    }

    double eps_;
    int64_t width_;
};

}  // namespace

Rows::Value layer_norm(Rows& rows, Rows::Value x, const at::Tensor& weight, const at::Tensor& bias,
                       double eps) {
    ETHER_ASSERT(weight.dim() == 1 && weight.size(0) == rows.width(x) && bias.sizes() == weight.sizes());
    const auto dtype = rows.compute_dtype();
    return rows.apply(
        std::make_shared<LayerNorm>(weight.to(dtype).contiguous(), bias.to(dtype).contiguous(), eps), {x});
}

}  // namespace ether::ops
