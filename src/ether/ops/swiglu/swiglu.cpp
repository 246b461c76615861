#include "ether/ops/swiglu/swiglu.h"

#include <ATen/Functions.h>

#include "ether/ops/isa.h"
#include "ether/ops/vector_math.h"

namespace ether::ops {
namespace {

class Swiglu : public RowOpOf<Swiglu> {
  public:
    explicit Swiglu(int64_t width) : width_(width) {}

    bool reads_arguments(bool) const override { return true; }

    at::Tensor composed(at::TensorList x, at::TensorList) const override { return at::silu(x[0]) * x[1]; }

    std::optional<DeviceCode> device_code() const override { return DeviceCode{.name = "Swiglu"}; }

    template <typename P>
    void run(const RowTile<P>& tile, P* y) const {
        for_values<P>(tile.count * width_, [&](int64_t j, const auto& lanes) {
            const auto x = load<P>(tile.x[0] + j, lanes);
            store<P>(y + j, x * sigmoid(x) * load<P>(tile.x[1] + j, lanes), lanes);
        });
    }

    // d silu(x) = s (1 + x (1 - s)) with s = sigmoid(x).
    template <typename P>
    void run_back(const RowTile<P>& tile, const RowGradients<P>& grad) const {
        for_values<P>(tile.count * width_, [&](int64_t j, const auto& lanes) {
            const auto x = load<P>(tile.x[0] + j, lanes), up = load<P>(tile.x[1] + j, lanes),
                       g = load<P>(grad.y + j, lanes), s = sigmoid(x);
            if (grad.x[0]) store<P>(grad.x[0] + j, g * up * s * (1 + x * (1 - s)), lanes);
            if (grad.x[1]) store<P>(grad.x[1] + j, g * x * s, lanes);
        });
    }

  private:
    int64_t width_;
};

}  // namespace

Rows::Value swiglu(Rows& rows, Rows::Value gate, Rows::Value up) {
    return rows.apply(std::make_shared<Swiglu>(rows.width(gate)), {gate, up});
}

}  // namespace ether::ops
