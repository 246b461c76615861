#include "ether/nn/forms.h"

#include <ATen/Functions.h>

#include <algorithm>

#include "ether/core/error.h"
#include "ether/nn/dense_product.h"
#include "ether/ops/block_product/block_product.h"
#include "ether/ops/dropout/dropout.h"
#include "ether/ops/elementwise/elementwise.h"
#include "ether/ops/overlay/overlay.h"
#include "ether/ops/pair_rotate/pair_rotate.h"
#include "ether/ops/permute/permute.h"
#include "ether/ops/rank1/rank1.h"
#include "ether/ops/token_product/token_product.h"

namespace ether::nn {
namespace {

using at::Tensor;

bool is_banked(const LowRank& form) { return form.a.dim() == 3; }
bool is_banked(const BlockDiagonal& form) { return form.blocks.dim() == 4; }

// Forms that are products of all tokens with one matrix (not acts_by_row).
struct ApplyToAll {
    const Tensor& x;
    const FormPass& pass;

    Tensor operator()(const LowRank& form) const {
        const auto wide = x.to(form.a.scalar_type());
        return wide.mm(form.a.t()).mul(form.scale).mm(form.b.t()).to(x.scalar_type());
    }
    Tensor operator()(const BlockDiagonal& form) const {
        const auto& blocks = form.blocks;
        const auto wide = x.to(blocks.scalar_type());
        const int64_t tokens = x.size(0), n = blocks.size(0), in = blocks.size(1);
        if (n == 1) return wide.reshape({-1, in}).mm(blocks[0]).view({tokens, -1}).to(x.scalar_type());
        const auto pieces = wide.reshape({tokens, n, in}).transpose(0, 1);
        return pieces.bmm(blocks).transpose(0, 1).reshape({tokens, -1}).to(x.scalar_type());
    }
    Tensor operator()(const Dense& form) const {
        return dense_product(form, x.to(form.of.front().scalar_type()), {}, {}).to(x.scalar_type());
    }
    Tensor operator()(const SequenceGate& form) const {
        if (!pass.offsets.defined())
            fail(ErrorKind::adapter,
                 "this adapter's changes are gated by each text, so no weight holds them; use it with "
                 "--adapter");
        return gated(x, gate_of(form, x, pass.offsets).to(x.scalar_type()), pass.offsets);
    }
    template <typename Other>
    Tensor operator()(const Other&) const {
        ETHER_ASSERT(false);
    }
};

// Forms that treat each token by itself (acts_by_row); of LowRank those of a bank and thin ones, of
// BlockDiagonal small ones, too.
struct ApplyToRows {
    ops::Rows& rows;
    ops::Rows::Value x;
    const FormPass& pass;

    ops::Rows::Value operator()(const Rank1& form) const {
        const bool banked = form.left.dim() == 4;
        return ops::rank1(rows, x, form.left, form.right, form.coefficients, banked ? pass.rows : Tensor());
    }
    ops::Rows::Value operator()(const LowRank& form) const {
        if (!is_banked(form)) {
            const auto h = ops::block_product(rows, x, form.a.t().unsqueeze(0));
            return ops::block_product(rows, h, form.b.t().unsqueeze(0), form.scale);
        }
        const auto h = ops::token_product_transposed(rows, x, form.a.unsqueeze(1), pass.rows);
        // b's rows by rank, as a bank holds them (bank.h): a token then reads them one after the other.
        return ops::token_product(rows, h, form.b.transpose(1, 2).unsqueeze(1), pass.rows, form.scale);
    }
    ops::Rows::Value operator()(const Scale& form) const {
        return ops::scale(rows, x, form.factor, pass.rows);
    }
    ops::Rows::Value operator()(const Shift& form) const {
        return ops::shift(rows, x, form.offset, pass.rows);
    }
    ops::Rows::Value operator()(const BlockDiagonal& form) const {
        if (!is_banked(form)) return ops::block_product(rows, x, form.blocks);
        return ops::token_product(rows, x, form.blocks, pass.rows);
    }
    ops::Rows::Value operator()(const Permute& form) const { return ops::permute(rows, x, form.order); }
    ops::Rows::Value operator()(const PairRotate& form) const {
        return ops::pair_rotate(rows, x, form.cosine, form.sine, form.half, pass.rows);
    }
    ops::Rows::Value operator()(const Dropout& form) const {
        return pass.training ? ops::dropout(rows, x, form.probability, pass.random, pass.first_row) : x;
    }
    ops::Rows::Value operator()(const Overlay& form) const {
        return ops::overlay(rows, x, form.patterns, form.values, pass.rows);
    }
    ops::Rows::Value operator()(const Dense&) const { ETHER_ASSERT(false); }
    ops::Rows::Value operator()(const SequenceGate&) const { ETHER_ASSERT(false); }
};

// The transpose of a form that keeps the width, acting on rows.
struct ApplyTransposed {
    const Tensor& rows;

    Tensor operator()(const Rank1& form) const {
        return ops::rank1(rows, form.right, form.left, form.coefficients);
    }
    Tensor operator()(const Scale& form) const { return rows * form.factor; }
    Tensor operator()(const BlockDiagonal& form) const {
        return apply_form(BlockDiagonal{form.blocks.transpose(1, 2)}, rows);
    }
    Tensor operator()(const Permute& form) const { return rows.index_select(1, form.order.argsort()); }
    Tensor operator()(const Dropout&) const { return rows; }
    template <typename Other>
    Tensor operator()(const Other&) const {
        fail(ErrorKind::adapter, "this form cannot act on a site's input");
    }
};

// A chain as the dense matrix (out, in) that it adds to a weight (out, in).
Tensor dense(const Chain& chain, const Tensor& weight) {
    Tensor result;  // of the chain so far: (in, .)
    for (const auto& form : chain) {
        if (std::holds_alternative<Dropout>(form)) continue;
        if (result.defined()) {
            result = apply_form(form, result.contiguous());
        } else if (const auto* low_rank = std::get_if<LowRank>(&form)) {
            result = low_rank->a.t().mm(low_rank->b.t()).mul(low_rank->scale);
        } else if (const auto* matrix = std::get_if<BlockDiagonal>(&form);
                   matrix && matrix->blocks.size(1) == weight.size(1)) {
            result = matrix->blocks[0];
        } else if (const auto* large = std::get_if<Dense>(&form)) {
            result = large->matrix().t();
        } else {
            result = apply_form(form, at::eye(weight.size(1), weight.options()));
        }
    }
    return result.t();
}

// A Rank1 form as I + U V^T: U, V (d, terms * n), block-diagonal.
std::pair<Tensor, Tensor> dense_factors(const Rank1& form, at::ScalarType dtype) {
    const int64_t terms = form.left.size(0), blocks = form.left.size(1), size = form.left.size(2);
    auto spread = [&](const Tensor& vectors) {
        auto dense = at::zeros({blocks * size, terms * blocks}, vectors.options().dtype(dtype));
        for (int64_t term = 0; term < terms; ++term)
            for (int64_t block = 0; block < blocks; ++block)
                dense.select(1, term * blocks + block)
                    .narrow(0, block * size, size)
                    .copy_(vectors[term][block]);
        return dense;
    };
    auto left = spread(form.left);
    for (int64_t term = 0; term < terms; ++term)
        left.narrow(1, term * blocks, blocks).mul_(form.coefficients[static_cast<size_t>(term)]);
    return {left, spread(form.right)};
}

[[noreturn]] void fail_not_low_rank() {
    fail(ErrorKind::adapter,
         "this adapter is not a low-rank change of its weights, so it has no exact LoRA form");
}

const Rank1& as_rank1(const Form& form) {
    if (const auto* rank1 = std::get_if<Rank1>(&form)) return *rank1;
    fail_not_low_rank();
}

struct Tensors {
    std::vector<Tensor*> operator()(Rank1& form) const { return {&form.left, &form.right}; }
    std::vector<Tensor*> operator()(LowRank& form) const { return {&form.a, &form.b}; }
    std::vector<Tensor*> operator()(Scale& form) const { return {&form.factor}; }
    std::vector<Tensor*> operator()(Shift& form) const { return {&form.offset}; }
    std::vector<Tensor*> operator()(BlockDiagonal& form) const { return {&form.blocks}; }
    std::vector<Tensor*> operator()(Permute&) const { return {}; }
    std::vector<Tensor*> operator()(PairRotate& form) const { return {&form.cosine, &form.sine}; }
    std::vector<Tensor*> operator()(Dropout&) const { return {}; }
    std::vector<Tensor*> operator()(Overlay& form) const { return {&form.values}; }
    std::vector<Tensor*> operator()(Dense& form) const {
        std::vector<Tensor*> tensors;
        for (auto& tensor : form.of) tensors.push_back(&tensor);
        return tensors;
    }
    std::vector<Tensor*> operator()(SequenceGate& form) const { return {&form.weight, &form.bias}; }
};

// Factors (A (r, in), B (out, r)) of a chain of linear forms, r being its smallest width.
std::pair<Tensor, Tensor> factors_of(const Chain& chain, const Tensor& weight) {
    Chain halves;  // a low-rank form is narrow in its middle
    for (const auto& form : chain) {
        if (const auto* low_rank = std::get_if<LowRank>(&form)) {
            halves.emplace_back(BlockDiagonal{low_rank->a.t().unsqueeze(0)});
            halves.emplace_back(BlockDiagonal{low_rank->b.t().mul(low_rank->scale).unsqueeze(0)});
        } else if (!std::holds_alternative<Dropout>(form)) {
            halves.push_back(form);
        }
    }
    int64_t width = weight.size(1), narrowest = width;
    auto cut = halves.begin();
    for (auto form = halves.begin(); form != halves.end(); ++form) {
        width = width_after(*form, width);
        if (width == 0)  // of rank 0: AdaLoRA left this layer nothing
            return {at::zeros({0, weight.size(1)}, weight.options()),
                    at::zeros({weight.size(0), 0}, weight.options())};
        if (width < narrowest) narrowest = width, cut = form + 1;
    }
    const auto one = [&](int64_t size) { return at::eye(size, weight.options()); };
    const auto a = cut == halves.begin() ? one(weight.size(1)) : dense({halves.begin(), cut}, weight);
    const auto b =
        cut == halves.end() ? one(narrowest) : apply_chain({cut, halves.end()}, one(narrowest), {}).t();
    return {a.to(weight.scalar_type()), b.to(weight.scalar_type())};
}

}  // namespace

bool acts_by_row(const Form& form) {
    if (const auto* low_rank = std::get_if<LowRank>(&form))
        return is_banked(*low_rank) || (ops::suits_block_product(low_rank->a.unsqueeze(0)) &&
                                        ops::suits_block_product(low_rank->b.unsqueeze(0)));
    if (const auto* diagonal = std::get_if<BlockDiagonal>(&form))
        return is_banked(*diagonal) || ops::suits_block_product(diagonal->blocks);
    return !std::holds_alternative<SequenceGate>(form) && !std::holds_alternative<Dense>(form);
}

int64_t width_after(const Form& form, int64_t width) {
    if (const auto* low_rank = std::get_if<LowRank>(&form)) return low_rank->b.size(-2);
    if (const auto* diagonal = std::get_if<BlockDiagonal>(&form))
        return width / diagonal->blocks.size(-2) * diagonal->blocks.size(-1);
    if (const auto* overlay = std::get_if<Overlay>(&form)) return overlay->patterns.front()->out;
    if (const auto* dense = std::get_if<Dense>(&form)) return dense->out;
    return width;
}

std::vector<Tensor*> tensors_of(Form& form) { return std::visit(Tensors{}, form); }

std::vector<Tensor*> tensors_of(SiteForms& forms) {
    std::vector<Tensor*> all;
    auto add = [&](Chain& chain) {
        for (auto& form : chain)
            for (Tensor* tensor : tensors_of(form)) all.push_back(tensor);
    };
    for (auto* chain : {&forms.pre, &forms.post, &forms.output}) add(*chain);
    for (auto& chain : forms.delta) add(chain);
    return all;
}

bool drops(const SiteForms& forms) {
    const auto in = [](const Chain& chain) {
        return std::any_of(chain.begin(), chain.end(),
                           [](const Form& form) { return std::holds_alternative<Dropout>(form); });
    };
    return in(forms.pre) || in(forms.post) || in(forms.output) ||
           std::any_of(forms.delta.begin(), forms.delta.end(), in);
}

Tensor apply_form(const Form& form, const Tensor& x, const FormPass& pass) {
    if (!acts_by_row(form)) return std::visit(ApplyToAll{x, pass}, form);
    ops::Rows rows;
    return rows.run(apply_form(form, rows, rows.input(x), pass));
}

ops::Rows::Value apply_form(const Form& form, ops::Rows& rows, ops::Rows::Value x, const FormPass& pass) {
    if (acts_by_row(form)) return std::visit(ApplyToRows{rows, x, pass}, form);
    return rows.input(apply_form(form, rows.run(x), pass));
}

ops::Rows::Value apply_chain(const Chain& chain, ops::Rows& rows, ops::Rows::Value x, const FormPass& pass) {
    for (const auto& form : chain) x = apply_form(form, rows, x, pass);
    return x;
}

Tensor apply_chain(const Chain& chain, const Tensor& x, const FormPass& pass) {
    ops::Rows rows;
    return rows.run(apply_chain(chain, rows, rows.input(x), pass));
}

namespace {

// Only if so many places are entries: a sparse change costs 1.2 ns an entry and token, three times a step, a
// dense one another product, as much at 1 in 200.
std::optional<Dense> dense_overlay(const Overlay& overlay) {
    constexpr double kDense = 0.01;
    const auto pattern = overlay.patterns.front();
    const auto places = static_cast<double>(pattern->out * pattern->in);
    if (overlay.patterns.size() > 1 || static_cast<double>(pattern->size()) < kDense * places) return {};
    const auto make = [pattern](const std::vector<Tensor>& of) {
        return at::zeros({pattern->out * pattern->in}, of[0].options())
            .scatter_add(0, pattern->numbers(), of[0])
            .view({pattern->out, pattern->in});
    };
    return Dense{{overlay.values}, make, pattern->out};
}

}  // namespace

std::optional<Dense> dense_delta(const SiteForms& forms, at::ScalarType dtype) {
    if (!forms.pre.empty() || !forms.post.empty() || !forms.output.empty() || forms.delta.size() != 1)
        return {};
    const auto& chain = forms.delta.front();
    if (chain.size() != 1) return {};
    if (const auto* overlay = std::get_if<Overlay>(&chain.front()))
        return overlay->values.scalar_type() == dtype ? dense_overlay(*overlay) : std::nullopt;
    const auto* dense = std::get_if<Dense>(&chain.front());
    return dense && dense->of.front().scalar_type() == dtype ? std::optional(*dense) : std::nullopt;
}

std::pair<Tensor, Tensor> merged(const SiteForms& forms, const Tensor& weight, const Tensor& bias) {
    const at::NoGradGuard no_grad;
    auto w = weight, b = bias;
    // W P_k .. P_1: the last pre form meets W first, and acts on its rows transposed.
    for (auto form = forms.pre.rbegin(); form != forms.pre.rend(); ++form)
        w = std::visit(ApplyTransposed{w.contiguous()}, *form);
    auto act_on_weight = [&](const Form& form) {
        if (!std::holds_alternative<Shift>(form)) w = apply_form(form, w.t().contiguous()).t();
    };
    auto act_on_bias = [&](const Form& form) {
        if (!b.defined() && !std::holds_alternative<Shift>(form)) return;
        if (!b.defined()) b = at::zeros({w.size(0)}, w.options());
        b = apply_form(form, b.unsqueeze(0)).squeeze(0);
    };
    for (const auto& form : forms.post) {
        ETHER_ASSERT(!std::holds_alternative<Shift>(form));
        act_on_weight(form);
    }
    for (const auto& form : forms.output) {
        act_on_weight(form);
        act_on_bias(form);
    }
    for (const auto& chain : forms.delta) w = w + dense(chain, weight);
    return {w.contiguous(), b};
}

// With M = I + U V^T on the input and N = I + P Q^T on the output: N W M - W = (W U) V^T + P (Q^T W M), form
// by form.
std::pair<Tensor, Tensor> lora_factors(const SiteForms& forms, const Tensor& weight) {
    const at::NoGradGuard no_grad;
    const auto dtype = weight.scalar_type();
    std::vector<Tensor> a = {at::zeros({0, weight.size(1)}, weight.options())},
                        b = {at::zeros({weight.size(0), 0}, weight.options())};
    auto w = weight;
    for (auto form = forms.pre.rbegin(); form != forms.pre.rend(); ++form) {
        const auto [u, v] = dense_factors(as_rank1(*form), dtype);
        // (W + BA)(I + U V^T) = W + BA + ((W + BA) U) V^T
        b.push_back(w.mm(u));
        a.push_back(v.t());
        w = w + b.back().mm(a.back());
    }
    auto output_side = [&](const Form& form) {
        const auto [p, q] = dense_factors(as_rank1(form), dtype);
        a.push_back(q.t().mm(w));
        b.push_back(p);
        w = w + b.back().mm(a.back());
    };
    for (const auto& form : forms.post) output_side(form);
    if (!forms.output.empty()) fail_not_low_rank();  // it changes the bias, which no LoRA holds
    for (const auto& chain : forms.delta) {
        auto [down, up] = factors_of(chain, weight);
        a.push_back(std::move(down));
        b.push_back(std::move(up));
    }
    return {at::cat(a, 0), at::cat(b, 1)};
}

}  // namespace ether::nn
