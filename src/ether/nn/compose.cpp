#include "ether/nn/compose.h"

#include <ATen/Functions.h>

#include <algorithm>

#include "ether/core/error.h"

namespace ether::nn {
namespace {

void append(Chain& to, const Chain& more) { to.insert(to.end(), more.begin(), more.end()); }

Chain without_shifts(const Chain& chain) {
    Chain result;
    for (const auto& form : chain)
        if (!std::holds_alternative<Shift>(form)) result.push_back(form);
    return result;
}

// What an output chain adds to a bias; undefined if there is neither a bias nor a shift.
at::Tensor bias_change(const Chain& output, const at::Tensor& bias) {
    Chain shifts;
    for (const auto& form : output)
        if (std::holds_alternative<Shift>(form)) shifts.push_back(form);
    if (!bias.defined() && shifts.empty()) return {};
    const auto own = bias.defined() ? bias.to(at::promote_types(bias.scalar_type(), at::kFloat))
                                    : at::zeros_like(std::get<Shift>(shifts.front()).offset);
    return apply_chain(output, own.unsqueeze(0), {}).squeeze(0) - own;
}

// One form whose result is `weight` times as large.
Form scaled(const Form& form, double weight) {
    if (const auto* low_rank = std::get_if<LowRank>(&form))
        return LowRank{low_rank->a, low_rank->b, low_rank->scale * weight};
    if (const auto* diagonal = std::get_if<BlockDiagonal>(&form))
        return BlockDiagonal{diagonal->blocks * weight};
    if (const auto* overlay = std::get_if<Overlay>(&form))
        return Overlay{overlay->patterns, overlay->values * weight};
    if (const auto* dense = std::get_if<Dense>(&form))
        return Dense{dense->of, [make = dense->make, weight](const auto& of) { return make(of) * weight; },
                     dense->out};
    if (const auto* scale = std::get_if<Scale>(&form)) return Scale{scale->factor * weight};
    ETHER_ASSERT(false);
}

bool can_be_scaled(const Form& form) {
    return std::holds_alternative<LowRank>(form) || std::holds_alternative<BlockDiagonal>(form) ||
           std::holds_alternative<Overlay>(form) || std::holds_alternative<Scale>(form) ||
           std::holds_alternative<Dense>(form);
}

}  // namespace

SiteForms composed(const SiteForms& first, const SiteForms& second, const at::Tensor& bias) {
    SiteForms result;
    // Dropped by both, one after the other.
    result.input_dropout = 1 - (1 - first.input_dropout) * (1 - second.input_dropout);
    result.pre = second.pre;
    append(result.pre, first.pre);
    result.post = first.post;
    if (second.post.empty() || first.output.empty()) {
        append(result.post, second.post);
        result.output = first.output;
    } else {
        // second.post acts on the product that first.output made, but not on the bias that it made.
        append(result.post, without_shifts(first.output));
        append(result.post, second.post);
        if (const auto change = bias_change(first.output, bias); change.defined())
            result.output.emplace_back(Shift{change});
    }
    append(result.output, second.output);
    // What `first` adds is part of the product that `second` changes.
    for (const auto& delta : first.delta) {
        auto& chain = result.delta.emplace_back(second.pre);
        append(chain, delta);
        append(chain, second.post);
        append(chain, without_shifts(second.output));
    }
    result.delta.insert(result.delta.end(), second.delta.begin(), second.delta.end());
    return result;
}

SiteForms weighted(const SiteForms& forms, double weight) {
    if (weight == 1 || forms.empty()) return forms;
    const bool only_shifts = std::all_of(forms.output.begin(), forms.output.end(), [](const Form& form) {
        return std::holds_alternative<Shift>(form);
    });
    if (!forms.pre.empty() || !forms.post.empty() || !only_shifts)
        fail(ErrorKind::adapter,
             "only additions to a weight or bias can be taken in part, and this adapter reflects, rotates or "
             "scales "
             "a layer's "
             "features; give it the weight 1");
    SiteForms result = forms;
    for (auto& form : result.output) form = Shift{std::get<Shift>(form).offset * weight};
    for (auto& chain : result.delta) {
        const auto last = std::find_if(chain.rbegin(), chain.rend(), can_be_scaled);
        ETHER_ASSERT(last != chain.rend());
        *last = scaled(*last, weight);
    }
    return result;
}

}  // namespace ether::nn
