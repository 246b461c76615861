#include "ether/ops/block_product/block_product.h"

#include <ATen/Functions.h>

#include <algorithm>

#include "ether/core/error.h"
#include "ether/ops/gemm/tile.h"

namespace ether::ops {
namespace {

class BlockProduct : public RowOpOf<BlockProduct> {
  public:
    BlockProduct(const at::Tensor& blocks, int64_t pieces, double alpha)
        : pieces_(pieces), blocks_(blocks.size(0)), in_(blocks.size(1)), out_(blocks.size(2)), alpha_(alpha) {
        parameters = {blocks.contiguous()};
        if (at::GradMode::is_enabled()) transposed_ = blocks.detach().transpose(1, 2).contiguous();
    }

    int64_t width(int64_t) const override { return pieces_ * out_; }
    bool reads_arguments(bool with_parameters) const override { return with_parameters; }

    at::Tensor composed(at::TensorList x, at::TensorList parameters) const override {
        const auto pieces = x[0].view({-1, pieces_, 1, in_});
        return alpha_ * pieces.matmul(parameters[0]).view({-1, pieces_ * out_});
    }

    template <typename P>
    void run(const RowTile<P>& tile, P* y) const {
        for (int64_t i = 0; i < pieces_; ++i)
            tile_product<P>(tile.count, out_, in_, alpha<P>(), {tile.x[0] + i * in_, pieces_ * in_},
                            {tile.parameters[0] + matrix_at(i), out_}, {y + i * out_, pieces_ * out_});
    }

    // grad_x = alpha g B^T, grad_B = sum over tokens of alpha x^T g.
    template <typename P>
    void run_back(const RowTile<P>& tile, const RowGradients<P>& grad) const {
        for (int64_t i = 0; i < pieces_; ++i) {
            const Strided<const P> g{grad.y + i * out_, pieces_ * out_};
            if (P* to = grad.x[0])
                tile_product<P>(tile.count, in_, out_, alpha<P>(), g,
                                {transposed_.const_data_ptr<P>() + matrix_at(i), in_},
                                {to + i * in_, pieces_ * in_});
            if (P* to = grad.parameters[0])
                tile_product<P>(in_, out_, tile.count, alpha<P>(), {tile.x[0] + i * in_, 1, pieces_ * in_}, g,
                                {to + matrix_at(i), out_}, /*accumulate=*/true);
        }
    }

  private:
    template <typename P>
    P alpha() const {
        return static_cast<P>(alpha_);
    }
    int64_t matrix_at(int64_t piece) const { return blocks_ == 1 ? 0 : piece * in_ * out_; }

    at::Tensor transposed_;
    int64_t pieces_, blocks_, in_, out_;
    double alpha_;
};

}  // namespace

bool suits_block_product(const at::Tensor& blocks) {
    constexpr int64_t kVector = 4, kLargest = 256, kThin = 32;
    const int64_t in = blocks.size(1), out = blocks.size(2);
    const bool small = blocks.size(0) > 1 ? std::max(in, out) <= kLargest : std::min(in, out) <= kThin;
    // Other devices have no kernel of it, and what stands beside it in a graph would be composed too.
    return blocks.is_cpu() && small && in > 0 && out > 0 && in % kVector == 0 && out % kVector == 0;
}

Rows::Value block_product(Rows& rows, Rows::Value x, const at::Tensor& blocks, double alpha) {
    ETHER_ASSERT(blocks.dim() == 3 && rows.width(x) % blocks.size(1) == 0);
    const int64_t pieces = rows.width(x) / blocks.size(1);
    ETHER_ASSERT(blocks.size(0) == pieces || blocks.size(0) == 1);
    return rows.apply(std::make_shared<BlockProduct>(blocks, pieces, alpha), {x});
}

}  // namespace ether::ops
