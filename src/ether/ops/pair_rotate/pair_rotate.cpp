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
        const P *x = tile.x[0], *cosine = tile.parameters[0], *sine = tile.parameters[1];
        each_pair(tile, [=](int64_t at, int64_t partner, int64_t j, int64_t other, const auto& lanes) {
            const auto first = load<P>(x + at, lanes), second = load<P>(x + partner, lanes);
            store<P>(y + at, load<P>(cosine + j, lanes) * first + load<P>(sine + j, lanes) * second, lanes);
            store<P>(y + partner,
                     load<P>(cosine + other, lanes) * second + load<P>(sine + other, lanes) * first, lanes);
        });
    }
    template <typename P>
    void run_back(const RowTile<P>& tile, const RowGradients<P>& grad) const {
        const P *x = tile.x[0], *g = grad.y, *cosine = tile.parameters[0], *sine = tile.parameters[1];
        P *to = grad.x[0], *to_cosine = grad.parameters[0], *to_sine = grad.parameters[1];
        each_pair(tile, [=](int64_t at, int64_t partner, int64_t j, int64_t other, const auto& lanes) {
            const auto g_first = load<P>(g + at, lanes), g_second = load<P>(g + partner, lanes);
            if (to) {
                const auto back = [&](int64_t own, int64_t their, const auto& a, const auto& b) {
                    return load<P>(cosine + own, lanes) * a + load<P>(sine + their, lanes) * b;
                };
                store<P>(to + at, back(j, other, g_first, g_second), lanes);
                store<P>(to + partner, back(other, j, g_second, g_first), lanes);
            }
            const auto add = [&](P* sums, const auto& a, const auto& b) {
                store<P>(sums + j, load<P>(sums + j, lanes) + g_first * a, lanes);
                store<P>(sums + other, load<P>(sums + other, lanes) + g_second * b, lanes);
            };
            if (!to_cosine && !to_sine) return;
            const auto first = load<P>(x + at, lanes), second = load<P>(x + partner, lanes);
            if (to_cosine) add(to_cosine, first, second);
            if (to_sine) add(to_sine, second, first);
        });
    }

  private:
    // Calls body(values' places in the tile, their partners', the places of both in the parameters, lanes).
    template <typename P, typename Body>
    void each_pair(const RowTile<P>& tile, Body&& body) const {
        const auto* entries =
            bank_rows_.defined() ? bank_rows_.const_data_ptr<int32_t>() + tile.first : nullptr;
        const auto each = [&](auto isa) {
            for (int64_t t = 0; t < tile.count; ++t) {
                const int64_t row = t * width_, in_bank = entries ? entries[t] * width_ : 0;
                for (int64_t group = 0; group < width_; group += 2 * half_)
                    for_vectors<P>(isa, half_, half_, [&](int64_t k, const auto& lanes) {
                        const int64_t first = group + k, second = first + half_;
                        body(row + first, row + second, in_bank + first, in_bank + second, lanes);
                    });
            }
        };
        for_best_isa([&](auto isa) {
            // Whole vectors alone: a part of one is made value by value.
            if (half_ % kLanes<P, decltype(isa)::kBytes> == 0)
                each(isa);
            else if (half_ % kLanes<P, 16> == 0)
                each(Isa<16>());
            else
                each(Isa<sizeof(P)>());
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
