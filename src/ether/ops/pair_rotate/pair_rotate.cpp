#include "ether/ops/pair_rotate/pair_rotate.h"

#include <ATen/Functions.h>

#include "ether/core/error.h"
#include "ether/ops/isa.h"
#include "ether/ops/vector.h"

namespace ether::ops {
namespace {

class PairRotation : public RowOpOf<PairRotation> {
  public:
    PairRotation(const at::Tensor& cosine, const at::Tensor& sine, int64_t half, const at::Tensor& bank_rows)
        : width_(cosine.size(-1)), half_(half), bank_rows_(bank_rows) {
        this->parameters = {cosine, sine};
    }

    bool reads_arguments(bool with_parameters) const override { return with_parameters; }

    at::Tensor composed(at::TensorList x, at::TensorList parameters) const override {
        auto own = [&](const at::Tensor& values) {
            return bank_rows_.defined() ? values.index_select(0, bank_rows_) : values;
        };
        const auto partners = x[0].view({-1, width_ / (2 * half_), 2, half_}).flip(2).view(x[0].sizes());
        return own(parameters[0]) * x[0] + own(parameters[1]) * partners;
    }

    template <typename P>
    void run(const RowTile<P>& tile, P* y) const {
        const P* x = tile.x[0];
        each_pair(tile, [&](int64_t at, int64_t partner, int64_t j) {
            y[at] = tile.parameters[0][j] * x[at] + tile.parameters[1][j] * x[partner];
        });
    }
    template <typename P>
    void run_back(const RowTile<P>& tile, const RowGradients<P>& grad) const {
        const P *x = tile.x[0], *g = grad.y;
        if (P* to = grad.x[0])
            each_pair(tile, [&](int64_t at, int64_t partner, int64_t j) {
                to[at] = tile.parameters[0][j] * g[at] + tile.parameters[1][j + partner - at] * g[partner];
            });
        if (P* to = grad.parameters[0])
            each_pair(tile, [&](int64_t at, int64_t, int64_t j) { to[j] += g[at] * x[at]; });
        if (P* to = grad.parameters[1])
            each_pair(tile, [&](int64_t at, int64_t partner, int64_t j) { to[j] += g[at] * x[partner]; });
    }

  private:
    // Calls body(a value's place in the tile, its partner's, its place in the parameters).
    template <typename P, typename Body>
    ETHER_INLINE void each_pair(const RowTile<P>& tile, Body&& body) const {
        const auto* entries =
            bank_rows_.defined() ? bank_rows_.const_data_ptr<int32_t>() + tile.first : nullptr;
        for_best_isa([&] {
            for (int64_t t = 0; t < tile.count; ++t) {
                const int64_t at = t * width_, in_bank = entries ? entries[t] * width_ : 0;
                for (int64_t group = 0; group < width_; group += 2 * half_)
                    for (int64_t side = 0; side < 2; ++side) {
                        const int64_t first = group + side * half_, other = group + (1 - side) * half_;
                        for (int64_t k = 0; k < half_; ++k)
                            body(at + first + k, at + other + k, in_bank + first + k);
                    }
            }
        });
    }

    int64_t width_, half_;
    at::Tensor bank_rows_;
};

}  // namespace

Rows::Value pair_rotate(Rows& rows, Rows::Value x, const at::Tensor& cosine, const at::Tensor& sine,
                        int64_t half, const at::Tensor& bank_rows) {
    ETHER_ASSERT(cosine.sizes() == sine.sizes() && rows.width(x) == cosine.size(-1));
    ETHER_ASSERT(half > 0 && cosine.size(-1) % (2 * half) == 0);
    ETHER_ASSERT(cosine.dim() == 1 || (cosine.dim() == 2 && bank_rows.defined()));
    auto own = [&](const at::Tensor& values) { return values.to(rows.compute_dtype()).contiguous(); };
    return rows.apply(std::make_shared<PairRotation>(own(cosine), own(sine), half,
                                                     cosine.dim() == 2 ? bank_rows : at::Tensor()),
                      {x});
}

}  // namespace ether::ops
