#include "ether/ops/block_product/block_product.h"

#include <ATen/Functions.h>

#include <algorithm>

#include "ether/core/error.h"
#include "ether/ops/gemm/tile.h"
#include "ether/ops/isa.h"
#include "ether/ops/vector.h"

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

// The same for many blocks of 4 x 4, as a vector holds several: four steps for each, in which every feature
// of y meets one of its block's features of x.
class NarrowBlockProduct : public RowOpOf<NarrowBlockProduct> {
  public:
    static constexpr int64_t kSize = 4;

    // blocks: (n, 4, 4). The parameter is (4, n * 4): the first rows of all blocks, then the second ones.
    explicit NarrowBlockProduct(const at::Tensor& blocks, double alpha)
        : width_(blocks.size(0) * kSize), alpha_(alpha) {
        parameters = {side_by_side(blocks)};
        if (at::GradMode::is_enabled()) transposed_ = side_by_side(blocks.detach().transpose(1, 2));
    }

    bool reads_arguments(bool with_parameters) const override { return with_parameters; }

    at::Tensor composed(at::TensorList x, at::TensorList parameters) const override {
        const auto blocks = parameters[0].view({kSize, -1, kSize}).transpose(0, 1);
        return alpha_ * x[0].view({-1, width_ / kSize, 1, kSize}).matmul(blocks).view({-1, width_});
    }

    template <typename P>
    void run(const RowTile<P>& tile, P* y) const {
        multiply(tile.count, tile.x[0], tile.parameters[0], y);
    }

    template <typename P>
    void run_back(const RowTile<P>& tile, const RowGradients<P>& grad) const {
        if (P* to = grad.x[0]) multiply(tile.count, grad.y, transposed_.const_data_ptr<P>(), to);
        if (P* to = grad.parameters[0]) add_outer(tile.count, tile.x[0], grad.y, to);
    }

  private:
    static at::Tensor side_by_side(const at::Tensor& blocks) {
        return blocks.transpose(0, 1).reshape({kSize, -1}).contiguous();
    }

    // Calls body(k, v with the k-th of every four lanes in place of all four) for each k.
    template <typename V, typename Body>
    ETHER_INLINE static void each_of_four(const V& v, Body&& body) {
        constexpr auto lanes = std::make_integer_sequence<int, sizeof(V) / sizeof(LaneOf<V>)>();
        body(0, spread<0>(v, lanes)), body(1, spread<1>(v, lanes));
        body(2, spread<2>(v, lanes)), body(3, spread<3>(v, lanes));
    }
    template <int k, typename V, int... lane>
    ETHER_INLINE static V spread(const V& v, std::integer_sequence<int, lane...>) {
        return __builtin_shufflevector(v, v, (lane / 4 * 4 + k)...);
    }

    // Calls body(first feature, lanes), with vectors of four values at least.
    template <typename P, typename Body>
    void for_features(Body&& body) const {
        for_best_isa([&]<int bytes>(Isa<bytes>) __attribute__((always_inline)) {
            constexpr int size = std::max<int>(bytes, kSize * sizeof(P));
            for_vectors<P>(Isa<size>(), width_, width_, body);
        });
    }

    template <typename P>
    void multiply(int64_t tokens, const P* x, const P* rows, P* y) const {
        for_features<P>([&](int64_t j, const auto& lanes) __attribute__((always_inline)) {
            using V = decltype(load<P>(x, lanes));
            V row[kSize];
            for (int64_t k = 0; k < kSize; ++k)
                row[k] = static_cast<P>(alpha_) * load<P>(rows + k * width_ + j, lanes);
            for (int64_t at = j; at < tokens * width_; at += width_) {
                V sum = {};
                each_of_four(load<P>(x + at, lanes), [&](int k, const V& factor) { sum += factor * row[k]; });
                store<P>(y + at, sum, lanes);
            }
        });
    }

    template <typename P>
    void add_outer(int64_t tokens, const P* x, const P* g, P* to) const {
        for_features<P>([&](int64_t j, const auto& lanes) __attribute__((always_inline)) {
            using V = decltype(load<P>(x, lanes));
            V sums[kSize] = {};
            for (int64_t at = j; at < tokens * width_; at += width_) {
                const V gradient = load<P>(g + at, lanes);
                each_of_four(load<P>(x + at, lanes),
                             [&](int k, const V& factor) { sums[k] += factor * gradient; });
            }
            for (int64_t k = 0; k < kSize; ++k) {
                P* sum = to + k * width_ + j;
                store<P>(sum, load<P>(sum, lanes) + static_cast<P>(alpha_) * sums[k], lanes);
            }
        });
    }

    at::Tensor transposed_;
    int64_t width_;
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
    constexpr auto narrow = NarrowBlockProduct::kSize;
    if (pieces > 1 && blocks.sizes() == at::IntArrayRef({pieces, narrow, narrow}))
        return rows.apply(std::make_shared<NarrowBlockProduct>(blocks, alpha), {x});
    return rows.apply(std::make_shared<BlockProduct>(blocks, pieces, alpha), {x});
}

}  // namespace ether::ops
