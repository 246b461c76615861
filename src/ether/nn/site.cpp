#include "ether/nn/site.h"

#include <algorithm>

#include "ether/nn/dense_product.h"
#include "ether/nn/low_rank_product.h"
#include "ether/ops/dropout/dropout.h"
#include "ether/ops/elementwise/elementwise.h"

namespace ether::nn {

using ops::Rows;

namespace {

// y plus x through a chain. A product with a last factor is added where y lies, instead of being a value of
// its own; `in_place` says that nobody else reads y. remade: see plus_low_rank.
at::Tensor plus_chain(const at::Tensor& y, const Chain& chain, const at::Tensor& x, const FormPass& pass,
                      bool in_place, const std::shared_ptr<ops::Remade>& remade) {
    const auto* last = std::get_if<LowRank>(&chain.back());
    // A GPU's products of bfloat16 add up in float32, so factors may be narrowed for them.
    const bool same = last && (last->a.scalar_type() == y.scalar_type() || y.is_cuda());
    if (!same) {
        const auto change = apply_chain(chain, x, pass);
        return in_place ? y.add_(change) : y + change;
    }
    const auto a = last->a.to(y.scalar_type()), b = last->b.to(y.scalar_type());
    const Chain before(chain.begin(), chain.end() - 1);
    const bool drops_alone = std::all_of(
        before.begin(), before.end(), [](const Form& form) { return std::holds_alternative<Dropout>(form); });
    if (drops_alone) return plus_low_rank(y, x, before, pass, a, b, last->scale, in_place, remade);
    return plus_low_rank(y, apply_chain(before, x, pass), {}, pass, a, b, last->scale, in_place, nullptr);
}

}  // namespace

at::Tensor Site::operator()(const at::Tensor& x, const Pass& pass) const {
    Rows before;
    const Projections projection(before, before.input(x), {this}, pass);
    Rows after;
    return after.run(projection.finish(0, after));
}

Projections::Projections(Rows& rows, Rows::Value x, std::vector<const Site*> sites, const Pass& pass,
                         const std::vector<Rows::Value>& others)
    : sites_(std::move(sites)) {
    std::vector<Rows::Value> wanted = others;
    std::vector<Rows::Value> inputs;  // of a site's forms: x, dropped
    for (const auto* site : sites_) {
        const auto& forms = site->forms;
        passes_.push_back({.training = pass.training,
                           .rows = pass.adapter_rows,
                           .first_row = pass.first_token,
                           .offsets = pass.sequence_offsets()});
        if (pass.training && drops(forms)) passes_.back().random = pass.stream(site->index, "forms");
        inputs.push_back(pass.training && forms.input_dropout > 0
                             ? ops::dropout(rows, x, forms.input_dropout, pass.stream(site->index, "input"),
                                            pass.first_token)
                             : x);
        wanted.push_back(apply_chain(forms.pre, rows, inputs.back(), passes_.back()));
    }
    const size_t first = others.size();
    for (size_t i = 0; i < sites_.size(); ++i)
        if (!sites_[i]->forms.delta.empty()) wanted.push_back(inputs[i]);
    auto tensors = rows.run(wanted);
    auto delta_input = tensors.begin() + static_cast<int64_t>(first + sites_.size());
    // Of what an MLP's last layer reads, the widest there is, backward makes what a delta needs again. A norm
    // that several layers read is kept: it takes as long again for half the memory. A GPU's passes may be
    // recorded, and what they record makes nothing again.
    std::shared_ptr<ops::Remade> remade;
    if (pass.training && sites_.size() == 1 && sites_.front()->forms.input_dropout == 0 &&
        !rows.is_input(x) && !tensors.front().is_cuda())
        remade = std::make_shared<ops::Remade>(rows, x);
    for (size_t i = 0; i < sites_.size(); ++i) {
        const auto& [forms, linear] = std::tie(sites_[i]->forms, sites_[i]->linear);
        const bool bias_follows = !forms.post.empty() && linear.bias.defined();
        const auto bias = bias_follows ? at::Tensor() : linear.bias;
        if (sites_[i]->watch) sites_[i]->watch(tensors[first + i]);
        at::Tensor* kept = sites_[i]->keeps_product ? pass.last_product : nullptr;
        const auto known = kept ? *kept : at::Tensor();
        const auto& sink = sites_[i]->weight_grad;
        // Added to the weight: one product forward, two backward, instead of two and three.
        const auto dense = dense_delta(forms, linear.weight.scalar_type());
        products_.push_back(dense
                                ? dense_product(*dense, tensors[first + i], linear.weight, bias, sink, known)
                                : ops::linear(tensors[first + i], linear.weight, bias, sink, known));
        if (kept && !known.defined()) *kept = products_.back().detach();
        auto& deltas = deltas_.emplace_back();
        if (!dense) {
            for (size_t k = 0; k < forms.delta.size(); ++k) {
                // One tensor to keep instead of two, where nothing comes between.
                const auto& chain = forms.delta[k];
                if (!acts_by_row(chain.back()) && forms.post.empty() && forms.output.empty())
                    products_.back() =
                        plus_chain(products_.back(), chain, *delta_input, passes_[i], !kept, remade);
                else
                    deltas.push_back({k, *delta_input, remade});
            }
        }
        if (!forms.delta.empty()) ++delta_input;
    }
    tensors.resize(first);
    others_ = std::move(tensors);
}

Rows::Value Projections::finish(size_t i, Rows& rows) const {
    const auto& [forms, linear] = std::tie(sites_[i]->forms, sites_[i]->linear);
    auto y = apply_chain(forms.post, rows, rows.input(products_[i]), passes_[i]);
    if (!forms.post.empty() && linear.bias.defined()) y = ops::shift(rows, y, linear.bias);
    y = apply_chain(forms.output, rows, y, passes_[i]);
    for (const auto& [k, x, again] : deltas_[i])
        y = ops::add(rows, y, apply_chain(forms.delta[k], rows, rows.input(x, again), passes_[i]));
    return y;
}

}  // namespace ether::nn
