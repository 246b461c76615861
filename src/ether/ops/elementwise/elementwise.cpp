#include "ether/ops/elementwise/elementwise.h"

#include <ATen/Functions.h>

#include <algorithm>

#include "ether/core/error.h"
#include "ether/ops/isa.h"
#include "ether/ops/vector.h"

namespace ether::ops {
namespace {

class Add : public RowOpOf<Add> {
  public:
    explicit Add(int64_t width) : width_(width) {}

    bool reads_arguments(bool) const override { return false; }
    bool passes_gradient() const override { return true; }

    at::Tensor composed(at::TensorList x, at::TensorList) const override { return x[0] + x[1]; }

    std::optional<DeviceCode> device_code() const override { return DeviceCode{.name = "Add"}; }

    template <typename P>
    void run(const RowTile<P>& tile, P* y) const {
        for_values<P>(tile.count * width_, [&](int64_t j, const auto& lanes) {
            store<P>(y + j, load<P>(tile.x[0] + j, lanes) + load<P>(tile.x[1] + j, lanes), lanes);
        });
    }
    template <typename P>
    void run_back(const RowTile<P>& tile, const RowGradients<P>& grad) const {
        for (P* to : grad.x)
            if (to) std::copy_n(grad.y, tile.count * width_, to);
    }

  private:
    int64_t width_;
};

// y = x * vector or x + vector, row by row.
template <bool kIsScale>
class WithVector : public RowOpOf<WithVector<kIsScale>> {
  public:
    WithVector(const at::Tensor& vector, const at::Tensor& bank_rows)
        : width_(vector.size(-1)), bank_rows_(bank_rows) {
        this->parameters = {vector};
    }

    bool reads_arguments(bool with_parameters) const override { return kIsScale && with_parameters; }

    at::Tensor composed(at::TensorList x, at::TensorList parameters) const override {
        const auto own = bank_rows_.defined() ? parameters[0].index_select(0, bank_rows_) : parameters[0];
        return kIsScale ? x[0] * own : x[0] + own;
    }

    std::optional<RowOp::DeviceCode> device_code() const override {
        return RowOp::DeviceCode{.name = kIsScale ? "Scale" : "Shift",
                                 .constants = {bank_rows_.defined()},
                                 .words = {address(bank_rows_)},
                                 .held = !bank_rows_.defined(),
                                 .trains = !bank_rows_.defined()};
    }

    template <typename P>
    void run(const RowTile<P>& tile, P* y) const {
        for_best_isa([&](auto isa) {
            for (int64_t t = 0; t < tile.count; ++t) {
                const P *x = tile.x[0] + t * width_, *vector = tile.parameters[0] + entry(tile.first + t);
                for_vectors<P>(isa, width_, width_, [&](int64_t j, const auto& lanes) {
                    const auto a = load<P>(x + j, lanes), b = load<P>(vector + j, lanes);
                    store<P>(y + t * width_ + j, kIsScale ? a * b : a + b, lanes);
                });
            }
        });
    }
    template <typename P>
    void run_back(const RowTile<P>& tile, const RowGradients<P>& grad) const {
        for_best_isa([&](auto isa) {
            for (int64_t t = 0; t < tile.count; ++t) {
                const int64_t at = t * width_, in_bank = entry(tile.first + t);
                for_vectors<P>(isa, width_, width_, [&](int64_t j, const auto& lanes) {
                    const auto g = load<P>(grad.y + at + j, lanes);
                    if (grad.x[0])
                        store<P>(grad.x[0] + at + j,
                                 kIsScale ? g * load<P>(tile.parameters[0] + in_bank + j, lanes) : g, lanes);
                    if (!grad.parameters[0]) return;
                    P* to = grad.parameters[0] + in_bank + j;
                    store<P>(to, load<P>(to, lanes) + (kIsScale ? g * load<P>(tile.x[0] + at + j, lanes) : g),
                             lanes);
                });
            }
        });
    }

  private:
    int64_t entry(int64_t token) const {
        return bank_rows_.defined() ? bank_rows_.const_data_ptr<int32_t>()[token] * width_ : 0;
    }

    int64_t width_;
    at::Tensor bank_rows_;
};

template <bool kIsScale>
Rows::Value with_vector(Rows& rows, Rows::Value x, const at::Tensor& vector, const at::Tensor& bank_rows) {
    ETHER_ASSERT(vector.dim() == 1 || (vector.dim() == 2 && bank_rows.defined()));
    ETHER_ASSERT(vector.size(-1) == rows.width(x));
    const auto own = vector.to(rows.compute_dtype()).contiguous();
    return rows.apply(
        std::make_shared<WithVector<kIsScale>>(own, vector.dim() == 2 ? bank_rows : at::Tensor()), {x});
}

}  // namespace

Rows::Value add(Rows& rows, Rows::Value a, Rows::Value b) {
    return rows.apply(std::make_shared<Add>(rows.width(a)), {a, b});
}
Rows::Value scale(Rows& rows, Rows::Value x, const at::Tensor& factor, const at::Tensor& bank_rows) {
    return with_vector<true>(rows, x, factor, bank_rows);
}
Rows::Value shift(Rows& rows, Rows::Value x, const at::Tensor& offset, const at::Tensor& bank_rows) {
    return with_vector<false>(rows, x, offset, bank_rows);
}

}  // namespace ether::ops
