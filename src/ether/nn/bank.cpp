#include "ether/nn/bank.h"

#include <ATen/Functions.h>

#include "ether/core/error.h"

namespace ether::nn {
namespace {

using at::Tensor;

[[noreturn]] void fail_unlike() {
    fail(ErrorKind::adapter,
         "these adapters cannot share a batch: they change a layer in different ways or sizes; adapters of "
         "one method with the same settings can");
}

// The tensor that `get` finds in each form.
template <typename Get>
Tensor stacked(const std::vector<const Form*>& forms, Get&& get) {
    std::vector<Tensor> parts;
    for (const auto* form : forms) {
        parts.push_back(get(*form));
        if (parts.back().sizes() != parts.front().sizes()) fail_unlike();
    }
    return at::stack(parts);
}

// Forms of one kind, the first of which is given.
struct Stack {
    const std::vector<const Form*>& forms;

    template <typename Kind, typename Get>
    Tensor all(const Kind&, Get&& get) const {
        return stacked(forms, [&](const Form& form) { return get(std::get<Kind>(form)); });
    }

    Form operator()(const Rank1& first) const {
        const auto left = all(first, [](const Rank1& form) { return form.left; });
        // A reflection's two sides are one tensor, which is read once.
        if (first.left.is_same(first.right)) return Rank1{left, left, first.coefficients};
        return Rank1{left, all(first, [](const Rank1& form) { return form.right; }), first.coefficients};
    }
    Form operator()(const LowRank& first) const {
        const auto b = all(first, [](const LowRank& form) { return form.b.t(); });
        return LowRank{all(first, [](const LowRank& form) { return form.a; }), b.transpose(1, 2),
                       first.scale};
    }
    Form operator()(const Scale& first) const {
        return Scale{all(first, [](const Scale& form) { return form.factor; })};
    }
    Form operator()(const Shift& first) const {
        return Shift{all(first, [](const Shift& form) { return form.offset; })};
    }
    Form operator()(const BlockDiagonal& first) const {
        return BlockDiagonal{all(first, [](const BlockDiagonal& form) { return form.blocks; })};
    }
    Form operator()(const Dense&) const {
        return BlockDiagonal{
            stacked(forms, [](const Form& form) { return std::get<Dense>(form).matrix().t().unsqueeze(0); })};
    }
    Form operator()(const PairRotate& first) const {
        return PairRotate{all(first, [](const PairRotate& form) { return form.cosine; }),
                          all(first, [](const PairRotate& form) { return form.sine; }), first.half};
    }
    Form operator()(const Overlay& first) const {
        Overlay result{{}, {}};
        std::vector<Tensor> values;
        for (const auto* form : forms) {
            const auto& [patterns, own] = std::get<Overlay>(*form);
            if (patterns.front()->in != first.patterns.front()->in ||
                patterns.front()->out != first.patterns.front()->out)
                fail_unlike();
            result.patterns.push_back(patterns.front());
            values.push_back(own);
        }
        result.values = at::cat(values);
        return result;
    }
    Form operator()(const SequenceGate&) const {
        fail(ErrorKind::adapter, "adapters that are gated by each text cannot share a batch");
    }
    // Alike in all entries.
    Form operator()(const Permute& first) const { return first; }
    Form operator()(const Dropout& first) const { return first; }
};

bool alike(const Form& a, const Form& b) {
    if (a.index() != b.index()) return false;
    if (const auto* rank1 = std::get_if<Rank1>(&a))
        return rank1->coefficients == std::get<Rank1>(b).coefficients;
    if (const auto* low_rank = std::get_if<LowRank>(&a)) return low_rank->scale == std::get<LowRank>(b).scale;
    if (const auto* permute = std::get_if<Permute>(&a))
        return at::equal(permute->order, std::get<Permute>(b).order);
    if (const auto* rotate = std::get_if<PairRotate>(&a)) return rotate->half == std::get<PairRotate>(b).half;
    if (const auto* dropout = std::get_if<Dropout>(&a))
        return dropout->probability == std::get<Dropout>(b).probability;
    return true;
}

// The chains that `get` finds in each entry, as one.
template <typename Get>
Chain banked_chain(const std::vector<SiteForms>& entries, Get&& get) {
    Chain result;
    const Chain& first = get(entries.front());
    for (size_t i = 0; i < first.size(); ++i) {
        std::vector<const Form*> forms;
        for (const auto& entry : entries) {
            const Chain& chain = get(entry);
            if (chain.size() != first.size() || !alike(chain[i], first[i])) fail_unlike();
            forms.push_back(&chain[i]);
        }
        result.push_back(std::visit(Stack{forms}, first[i]));
    }
    return result;
}

}  // namespace

SiteForms banked(const std::vector<SiteForms>& entries) {
    SiteForms result;
    result.input_dropout = entries.front().input_dropout;
    for (auto chain : {&SiteForms::pre, &SiteForms::post, &SiteForms::output})
        result.*chain =
            banked_chain(entries, [&](const SiteForms& entry) -> const Chain& { return entry.*chain; });
    const size_t deltas = entries.front().delta.size();
    for (const auto& entry : entries)
        if (entry.delta.size() != deltas) fail_unlike();
    for (size_t k = 0; k < deltas; ++k)
        result.delta.push_back(
            banked_chain(entries, [&](const SiteForms& entry) -> const Chain& { return entry.delta[k]; }));
    return result;
}

}  // namespace ether::nn
