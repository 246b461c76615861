#include "ether/ops/overlay/overlay.h"

#include <ATen/Functions.h>

#include <algorithm>

#include "ether/core/error.h"
#include "ether/ops/isa.h"
#include "ether/ops/vector.h"

namespace ether::ops {
namespace {

class OverlayProduct : public RowOpOf<OverlayProduct> {
  public:
    OverlayProduct(const SparsePatterns& patterns, const at::Tensor& values, const at::Tensor& bank_rows)
        : patterns_(patterns), bank_rows_(bank_rows) {
        for (const auto& pattern : patterns) {
            firsts_.push_back(total_);
            total_ += pattern->size();
        }
        this->parameters = {values};
        ETHER_ASSERT(values.dim() == 1 && values.size(0) == total_);
    }

    int64_t width(int64_t) const override { return patterns_.front()->out; }
    bool reads_arguments(bool with_parameters) const override { return with_parameters; }

    // Each pattern's matrix as a whole.
    at::Tensor composed(at::TensorList x, at::TensorList parameters) const override {
        at::Tensor sum;
        for (size_t i = 0; i < patterns_.size(); ++i) {
            const auto values = parameters[0].narrow(0, firsts_[i], patterns_[i]->size());
            const auto matrix =
                at::zeros({out() * in()}, values.options()).index_put({patterns_[i]->numbers()}, values);
            auto y = x[0].mm(matrix.view({out(), in()}).t());
            if (bank_rows_.defined())
                y = y.masked_fill(bank_rows_.ne(static_cast<int64_t>(i)).unsqueeze(1), 0);
            sum = sum.defined() ? sum + y : y;
        }
        return sum;
    }

    template <typename P>
    void run(const RowTile<P>& tile, P* y) const {
        std::fill_n(y, tile.count * out(), P{0});
        for_entries(tile, [&](int64_t value, int64_t row, int64_t column, int64_t first, int64_t end) {
            const P weight = tile.parameters[0][value];
            for (int64_t t = first; t < end; ++t) y[t * out() + row] += weight * tile.x[0][t * in() + column];
        });
    }

    template <typename P>
    void run_back(const RowTile<P>& tile, const RowGradients<P>& grad) const {
        if (P* to = grad.x[0]) {
            std::fill_n(to, tile.count * in(), P{0});
            for_entries(tile, [&](int64_t value, int64_t row, int64_t column, int64_t first, int64_t end) {
                const P weight = tile.parameters[0][value];
                for (int64_t t = first; t < end; ++t)
                    to[t * in() + column] += weight * grad.y[t * out() + row];
            });
        }
        if (P* to = grad.parameters[0])
            for_entries(tile, [&](int64_t value, int64_t row, int64_t column, int64_t first, int64_t end) {
                P sum = 0;
                for (int64_t t = first; t < end; ++t)
                    sum += grad.y[t * out() + row] * tile.x[0][t * in() + column];
                to[value] += sum;
            });
    }

  private:
    int64_t in() const { return patterns_.front()->in; }
    int64_t out() const { return patterns_.front()->out; }

    // Calls body(which value, its row and column, first..end of the tile's tokens) for all tokens at once, or
    // for each with its own pattern.
    template <typename P, typename Body>
    ETHER_INLINE void for_entries(const RowTile<P>& tile, Body&& body) const {
        auto entries_of = [&](size_t which, int64_t first, int64_t end) {
            const auto& pattern = *patterns_[which];
            const int64_t size = pattern.size();
            const auto *rows = pattern.places.const_data_ptr<int32_t>(), *columns = rows + size;
            for (int64_t k = 0; k < size; ++k) body(firsts_[which] + k, rows[k], columns[k], first, end);
        };
        if (!bank_rows_.defined()) return entries_of(0, 0, tile.count);
        const auto* chosen = bank_rows_.const_data_ptr<int32_t>() + tile.first;
        for (int64_t t = 0; t < tile.count; ++t) entries_of(static_cast<size_t>(chosen[t]), t, t + 1);
    }

    SparsePatterns patterns_;
    at::Tensor bank_rows_;
    std::vector<int64_t> firsts_;  // of each pattern's values
    int64_t total_ = 0;
};

}  // namespace

at::Tensor places_of(const at::Tensor& numbers, int64_t in) {
    return at::stack({numbers.div(in, "floor"), numbers.remainder(in)}).to(at::kInt);
}

SparsePattern::SparsePattern(at::Tensor entries, int64_t out, int64_t in)
    : places(entries.contiguous()), out(out), in(in) {
    ETHER_ASSERT(places.dim() == 2 && places.size(0) == 2 && places.scalar_type() == at::kInt);
    if (size() == 0 || places.is_meta()) return;  // meta: nothing but sizes
    const auto low = places.amin().item<int32_t>(), last_row = places[0].amax().item<int32_t>(),
               last_column = places[1].amax().item<int32_t>();
    ETHER_ASSERT(low >= 0 && last_row < out && last_column < in);
}

at::Tensor SparsePattern::numbers() const { return places[0].to(at::kLong) * in + places[1]; }

Rows::Value overlay(Rows& rows, Rows::Value x, const SparsePatterns& patterns, const at::Tensor& values,
                    const at::Tensor& bank_rows) {
    ETHER_ASSERT(!patterns.empty() && (patterns.size() == 1 || bank_rows.defined()));
    for (const auto& pattern : patterns)
        ETHER_ASSERT(pattern->in == rows.width(x) && pattern->out == patterns.front()->out);
    return rows.apply(std::make_shared<OverlayProduct>(patterns, values.to(rows.compute_dtype()).contiguous(),
                                                       patterns.size() == 1 ? at::Tensor() : bank_rows),
                      {x});
}

}  // namespace ether::ops
