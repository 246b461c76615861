#include "ether/ops/norm/rms_norm.h"

#include <ATen/Functions.h>

#include <cmath>

#include "ether/core/error.h"
#include "ether/ops/isa.h"
#include "ether/ops/vector.h"

namespace ether::ops {
namespace {

class RmsNorm : public RowOpOf<RmsNorm> {
  public:
    RmsNorm(const at::Tensor& weight, double eps, int64_t pieces)
        : eps_(eps), size_(weight.size(0)), pieces_(pieces) {
        parameters = {weight};
    }

    bool reads_arguments(bool) const override { return true; }

    at::Tensor composed(at::TensorList x, at::TensorList parameters) const override {
        const auto pieces = x[0].view({-1, pieces_, size_});
        const auto inverse = (pieces.square().mean(-1, /*keepdim=*/true) + eps_).rsqrt();
        return (pieces * inverse * parameters[0]).view(x[0].sizes());
    }

    std::optional<DeviceCode> device_code() const override {
        return DeviceCode{.name = "RmsNorm",
                          .constants = {static_cast<int>(size_)},
                          .piece = size_,
                          .sums = 1,
                          .numbers = {eps_},
                          .held = 1};
    }

    template <typename P>
    void run(const RowTile<P>& tile, P* y) const {
        for_best_isa([&](auto isa) {
            for (int64_t piece = 0; piece < tile.count * pieces_; ++piece) {
                const P *x = tile.x[0] + piece * size_, *weight = tile.parameters[0];
                const P scale = inverse(isa, x);
                for_vectors<P>(isa, size_, size_, [&](int64_t j, const auto& lanes) {
                    store<P>(y + piece * size_ + j,
                             load<P>(x + j, lanes) * scale * load<P>(weight + j, lanes), lanes);
                });
            }
        });
    }

    // With n = x r: grad_x = r (w g - n mean(w g n)), grad_w = sum over tokens of g n.
    template <typename P>
    void run_back(const RowTile<P>& tile, const RowGradients<P>& grad) const {
        for_best_isa([&](auto isa) {
            for (int64_t piece = 0; piece < tile.count * pieces_; ++piece) {
                const P *x = tile.x[0] + piece * size_, *weight = tile.parameters[0],
                        *g = grad.y + piece * size_;
                const P r = inverse(isa, x);
                auto sum = zeros<P>(isa);
                for_vectors<P>(isa, size_, size_, [&](int64_t j, const auto& lanes) {
                    const auto gj = load<P>(g + j, lanes), xj = load<P>(x + j, lanes);
                    sum += gj * load<P>(weight + j, lanes) * xj;
                    if (P* to = grad.parameters[0])
                        store<P>(to + j, load<P>(to + j, lanes) + gj * xj * r, lanes);
                });
                if (!grad.x[0]) continue;
                const P mean = sum_of<P>(sum) * r * r / static_cast<P>(size_);
                for_vectors<P>(isa, size_, size_, [&](int64_t j, const auto& lanes) {
                    const auto wg = load<P>(g + j, lanes) * load<P>(weight + j, lanes);
                    store<P>(grad.x[0] + piece * size_ + j, (wg - load<P>(x + j, lanes) * mean) * r, lanes);
                });
            }
        });
    }

  private:
    template <int bytes, typename P>
    ETHER_INLINE P inverse(Isa<bytes> isa, const P* x) const {
        Vector<P, bytes> sum = {};
        for_vectors<P>(isa, size_, size_, [&](int64_t j, const auto& lanes) {
            const auto v = load<P>(x + j, lanes);
            sum += v * v;
        });
        return 1 / std::sqrt(sum_of<P>(sum) / static_cast<P>(size_) + static_cast<P>(eps_));
    }

    double eps_;
    int64_t size_, pieces_;
};

}  // namespace

Rows::Value rms_norm(Rows& rows, Rows::Value x, const at::Tensor& weight, double eps) {
    ETHER_ASSERT(weight.dim() == 1 && rows.width(x) % weight.size(0) == 0);
    const auto own = weight.to(rows.compute_dtype()).contiguous();
    return rows.apply(std::make_shared<RmsNorm>(own, eps, rows.width(x) / weight.size(0)), {x});
}

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps) {
    Rows rows;
    return rows.run(rms_norm(rows, rows.input(x), weight, eps));
}

}  // namespace ether::ops
