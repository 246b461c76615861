#include "ether/ops/token_product/token_product.h"

#include <ATen/Functions.h>

#include <algorithm>

#include "ether/core/error.h"
#include "ether/ops/isa.h"
#include "ether/ops/vector.h"

namespace ether::ops {
namespace {

// y (columns) = alpha * x (rows) times m (rows, columns).
template <int bytes, typename P>
ETHER_INLINE void times(Isa<bytes> isa, const P* x, const P* m, P* y, int64_t rows, int64_t columns,
                        P alpha) {
    for_vectors<P>(isa, columns, columns, [&](int64_t j, const auto& lanes) {
        Vector<P, bytes> sum = {};
        for (int64_t i = 0; i < rows; ++i) sum += x[i] * load<P>(m + i * columns + j, lanes);
        store<P>(y + j, sum * alpha, lanes);
    });
}

// y (rows) = alpha * m (rows, columns) times x (columns), four rows at once, since one sum waits for itself.
template <int bytes, typename P>
ETHER_INLINE void times_transposed(Isa<bytes> isa, const P* x, const P* m, P* y, int64_t rows,
                                   int64_t columns, P alpha) {
    constexpr int64_t kTogether = 4;
    auto some = [&](int64_t i, auto count) {
        Vector<P, bytes> sums[count] = {};
        for_vectors<P>(isa, columns, columns, [&](int64_t j, const auto& lanes) {
            const auto xj = load<P>(x + j, lanes);
            for (int64_t k = 0; k < count; ++k) sums[k] += xj * load<P>(m + (i + k) * columns + j, lanes);
        });
        for (int64_t k = 0; k < count; ++k) y[i + k] = alpha * sum_of<P>(sums[k]);
    };
    int64_t i = 0;
    for (; i + kTogether <= rows; i += kTogether) some(i, std::integral_constant<int64_t, kTogether>());
    for (; i < rows; ++i) some(i, std::integral_constant<int64_t, 1>());
}

// to (rows, columns) += alpha * x (rows) y (columns)^T.
template <int bytes, typename P>
ETHER_INLINE void add_outer(Isa<bytes> isa, const P* x, const P* y, P* to, int64_t rows, int64_t columns,
                            P alpha) {
    for (int64_t i = 0; i < rows; ++i)
        for_vectors<P>(isa, columns, columns, [&](int64_t j, const auto& lanes) {
            P* at = to + i * columns + j;
            store<P>(at, load<P>(at, lanes) + alpha * x[i] * load<P>(y + j, lanes), lanes);
        });
}

template <bool kTransposed>
class TokenProduct : public RowOpOf<TokenProduct<kTransposed>> {
  public:
    TokenProduct(const at::Tensor& matrices, int64_t pieces, const at::Tensor& bank_rows, double alpha)
        : bank_rows_(bank_rows),
          pieces_(pieces),
          matrices_(matrices.size(1)),
          rows_(matrices.size(2)),
          columns_(matrices.size(3)),
          alpha_(alpha) {
        this->parameters = {matrices.contiguous()};
    }

    int64_t width(int64_t) const override { return pieces_ * (kTransposed ? rows_ : columns_); }
    bool reads_arguments(bool with_parameters) const override { return with_parameters; }

    at::Tensor composed(at::TensorList x, at::TensorList parameters) const override {
        const auto own = parameters[0].index_select(0, bank_rows_);  // (T, pieces or 1, rows, columns)
        const auto pieces = x[0].view({-1, pieces_, 1, kTransposed ? columns_ : rows_});
        return alpha_ * pieces.matmul(kTransposed ? own.transpose(2, 3) : own).view({x[0].size(0), -1});
    }

    template <typename P>
    void run(const RowTile<P>& tile, P* y) const {
        for_best_isa([&](auto isa) {
            each(tile, [&](int64_t at_matrix, int64_t in_rows, int64_t in_columns) {
                const P *m = tile.parameters[0] + at_matrix, *x = tile.x[0];
                const auto alpha = static_cast<P>(alpha_);
                if constexpr (kTransposed)
                    times_transposed(isa, x + in_columns, m, y + in_rows, rows_, columns_, alpha);
                else
                    times(isa, x + in_rows, m, y + in_columns, rows_, columns_, alpha);
            });
        });
    }

    template <typename P>
    void run_back(const RowTile<P>& tile, const RowGradients<P>& grad) const {
        for_best_isa([&](auto isa) {
            each(tile, [&](int64_t at_matrix, int64_t in_rows, int64_t in_columns) {
                const P* m = tile.parameters[0] + at_matrix;
                const auto alpha = static_cast<P>(alpha_);
                if (P* to = grad.x[0]) {
                    if constexpr (kTransposed)
                        times(isa, grad.y + in_rows, m, to + in_columns, rows_, columns_, alpha);
                    else
                        times_transposed(isa, grad.y + in_columns, m, to + in_rows, rows_, columns_, alpha);
                }
                if (!grad.parameters[0]) return;
                const P* left = (kTransposed ? grad.y : tile.x[0]) + in_rows;
                const P* right = (kTransposed ? tile.x[0] : grad.y) + in_columns;
                add_outer(isa, left, right, grad.parameters[0] + at_matrix, rows_, columns_, alpha);
            });
        });
    }

  private:
    // Calls body(where the matrix begins, where its rows' and its columns' values begin in a tile) for each
    // piece of each token.
    template <typename P, typename Body>
    ETHER_INLINE void each(const RowTile<P>& tile, Body&& body) const {
        const auto* entries = bank_rows_.const_data_ptr<int32_t>() + tile.first;
        for (int64_t t = 0; t < tile.count; ++t)
            for (int64_t piece = 0; piece < pieces_; ++piece)
                body((entries[t] * matrices_ + (matrices_ == 1 ? 0 : piece)) * rows_ * columns_,
                     (t * pieces_ + piece) * rows_, (t * pieces_ + piece) * columns_);
    }

    at::Tensor bank_rows_;
    int64_t pieces_, matrices_, rows_, columns_;
    double alpha_;
};

template <bool kTransposed>
Rows::Value product(Rows& rows, Rows::Value x, const at::Tensor& matrices, const at::Tensor& bank_rows,
                    double alpha) {
    ETHER_ASSERT(matrices.dim() == 4 && bank_rows.scalar_type() == at::kInt);
    ETHER_ASSERT(bank_rows.numel() == rows.tokens());
    const int64_t width = rows.width(x), in = matrices.size(kTransposed ? 3 : 2), pieces = width / in;
    ETHER_ASSERT(width == pieces * in && (matrices.size(1) == pieces || matrices.size(1) == 1));
    return rows.apply(std::make_shared<TokenProduct<kTransposed>>(matrices, pieces, bank_rows, alpha), {x});
}

}  // namespace

Rows::Value token_product(Rows& rows, Rows::Value x, const at::Tensor& matrices, const at::Tensor& bank_rows,
                          double alpha) {
    return product<false>(rows, x, matrices, bank_rows, alpha);
}

Rows::Value token_product_transposed(Rows& rows, Rows::Value x, const at::Tensor& matrices,
                                     const at::Tensor& bank_rows, double alpha) {
    return product<true>(rows, x, matrices, bank_rows, alpha);
}

}  // namespace ether::ops
