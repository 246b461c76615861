#include "ether/ops/rank1/rank1.h"

#include <ATen/Functions.h>

#include <array>

#include "ether/core/error.h"
#include "ether/ops/rank1/kernel.h"

namespace ether::ops {
namespace {

class Rank1Op : public RowOpOf<Rank1Op> {
  public:
    Rank1Op(const at::Tensor& left, const at::Tensor& right, const std::vector<double>& coefficients,
            const at::Tensor& bank_rows)
        : coefficients_(coefficients),
          single_coefficients_(coefficients.begin(), coefficients.end()),
          bank_rows_(bank_rows) {
        parameters = {left.contiguous(), right.contiguous()};
    }

    // A reflection's own gradient needs x; what flows on does not.
    bool reads_arguments(bool with_parameters) const override { return with_parameters; }

    at::Tensor composed(at::TensorList x, at::TensorList parameters) const override {
        auto of_token = [&](const at::Tensor& vectors) {  // (T or 1, terms, blocks, size)
            return vectors.dim() == 4 ? vectors.index_select(0, bank_rows_) : vectors.unsqueeze(0);
        };
        const auto left = of_token(parameters[0]), right = of_token(parameters[1]);
        const auto blocks = x[0].view({-1, left.size(2), left.size(3)});
        auto y = blocks;
        for (size_t k = 0; k < coefficients_.size(); ++k) {
            const auto term = static_cast<int64_t>(k);
            const auto products = (blocks * right.select(1, term)).sum(-1, /*keepdim=*/true);
            y = y + coefficients_[k] * products * left.select(1, term);
        }
        return y.view(x[0].sizes());
    }

    std::optional<DeviceCode> device_code() const override {
        const auto &left = parameters.front(), &right = parameters.back();
        const bool banked = bank_rows_.defined(), one = address(left) == address(right);
        const int64_t terms = left.size(-3), size = left.size(-1);
        return DeviceCode{.name = "Rank1",
                          .constants = {static_cast<int>(size), static_cast<int>(terms), banked, one},
                          .piece = size,
                          .sums = 2 * terms,
                          .words = {address(bank_rows_)},
                          .numbers = coefficients_,
                          .held = banked ? 0 : terms * (one ? 1 : 2),
                          .adds_up = true,
                          .trains = !banked};
    }

    template <typename P>
    void run(const RowTile<P>& tile, P* y) const {
        rank1_forward(view(tile), tile.x[0], y, tile.first, tile.count);
    }
    template <typename P>
    void run_back(const RowTile<P>& tile, const RowGradients<P>& grad) const {
        // Autograd adds the two gradients of vectors that are both; so both go to the first.
        const bool one =
            address(parameters[0]) == address(parameters[1]) && grad.parameters[0] && grad.parameters[1];
        rank1_backward(view(tile), tile.x[0], grad.y, grad.x[0], grad.parameters[0],
                       grad.parameters[one ? 0 : 1], tile.first, tile.count);
    }

  private:
    template <typename P>
    Rank1View<P> view(const RowTile<P>& tile) const {
        const auto& left = parameters.front();
        const P* coefficients;
        if constexpr (std::is_same_v<P, double>)
            coefficients = coefficients_.data();
        else
            coefficients = single_coefficients_.data();
        return {tile.parameters[0], tile.parameters[1],
                coefficients,       bank_rows_.defined() ? bank_rows_.const_data_ptr<int32_t>() : nullptr,
                left.size(-3),      left.size(-2),
                left.size(-1)};
    }

    std::vector<double> coefficients_;
    std::vector<float> single_coefficients_;
    at::Tensor bank_rows_;
};

}  // namespace

Rows::Value rank1(Rows& rows, Rows::Value x, const at::Tensor& left, const at::Tensor& right,
                  const std::vector<double>& coefficients, const at::Tensor& bank_rows) {
    ETHER_ASSERT(left.dim() == 3 || (left.dim() == 4 && bank_rows.defined()));
    ETHER_ASSERT(left.sizes() == right.sizes() && left.size(-1) * left.size(-2) == rows.width(x));
    ETHER_ASSERT(left.size(-3) == static_cast<int64_t>(coefficients.size()));
    ETHER_ASSERT(!bank_rows.defined() ||
                 (bank_rows.scalar_type() == at::kInt && bank_rows.numel() == rows.tokens()));
    return rows.apply(std::make_shared<Rank1Op>(left, right, coefficients, bank_rows), {x});
}

at::Tensor rank1(const at::Tensor& x, const at::Tensor& left, const at::Tensor& right,
                 const std::vector<double>& coefficients, const at::Tensor& bank_rows) {
    Rows rows;
    return rows.run(rank1(rows, rows.input(x), left, right, coefficients, bank_rows));
}

}  // namespace ether::ops
