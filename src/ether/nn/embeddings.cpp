#include "ether/nn/embeddings.h"

#include <ATen/Functions.h>

#include "ether/core/error.h"

namespace ether::nn {

TokenRows::TokenRows(const at::Tensor& ids, at::Tensor rows, int64_t vocabulary)
    : ids_(ids.to(rows.device())), rows_(std::move(rows)) {
    const auto device = rows_.device();
    const auto [sorted, order] = ids.sort();
    sorted_ = sorted.to(device), order_ = order.to(device);
    const int64_t width = rows_.size(1);
    entries_ = std::make_shared<ops::SparsePattern>(
        ops::places_of((ids.unsqueeze(1) * width + at::arange(width, ids.options())).flatten(), width)
            .to(device),
        vocabulary, width);
}

at::Tensor TokenRows::embed(const at::Tensor& table, const at::Tensor& token_ids) const {
    const auto place = at::searchsorted(sorted_, token_ids).clamp_max(sorted_.size(0) - 1);
    const auto hit = sorted_.index_select(0, place).eq(token_ids);
    const auto own = at::embedding(rows_, order_.index_select(0, place)).to(table.scalar_type());
    return at::where(hit.unsqueeze(1), own, at::embedding(table, token_ids));
}

at::Tensor TokenRows::in(const at::Tensor& table) const {
    return table.index_copy(0, ids_, rows_.to(table.scalar_type()));
}

SiteForms TokenRows::as_forms(const at::Tensor& table) const {
    SiteForms forms;
    forms.delta.push_back({Overlay{{entries_}, (rows_ - table.index_select(0, ids_)).flatten()}});
    return forms;
}

at::Tensor Embeddings::operator()(const at::Tensor& token_ids) const {
    auto x = rows ? rows->embed(table, token_ids) : at::embedding(table, token_ids);
    const auto dtype = x.scalar_type();
    x = apply_chain(forms.output, apply_chain(forms.post, x, {}), {});
    for (const auto& chain : forms.delta) {
        const auto* first = chain.empty() ? nullptr : std::get_if<LowRank>(&chain.front());
        ETHER_ASSERT(first);
        // A unit vector through A is one of its columns.
        const auto low = at::embedding(first->a.t(), token_ids).mul(first->scale).to(first->b.scalar_type());
        x = x + apply_chain(Chain(chain.begin() + 1, chain.end()), low.mm(first->b.t()), {});
    }
    return x.to(dtype);
}

}  // namespace ether::nn
