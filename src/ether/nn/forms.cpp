#include "ether/nn/forms.h"

#include <ATen/Functions.h>

#include "ether/core/error.h"
#include "ether/ops/dropout/dropout.h"
#include "ether/ops/elementwise/elementwise.h"
#include "ether/ops/rank1/rank1.h"
#include "ether/ops/token_product/token_product.h"

namespace ether::nn {
namespace {

using at::Tensor;

// Forms that are products of all tokens with one matrix (not acts_by_row).
struct ApplyToAll {
    const Tensor& x;
    const FormPass& pass;

    Tensor operator()(const LowRank& form) const {
        const auto input = pass.training ? ops::dropout(x, form.dropout, pass.random, pass.first_row) : x;
        const auto wide = input.to(form.a.scalar_type());
        return wide.mm(form.a.t()).mm(form.b.t()).mul(form.scale).to(x.scalar_type());
    }
    Tensor operator()(const BlockDiagonal& form) const {
        const auto& blocks = form.blocks;
        const auto pieces = x.to(blocks.scalar_type()).reshape({x.size(0), blocks.size(0), blocks.size(1)});
        return pieces.transpose(0, 1).bmm(blocks).transpose(0, 1).reshape(x.sizes()).to(x.scalar_type());
    }
    Tensor operator()(const Overlay& form) const {
        const auto rows = form.indices.div(form.in, "floor"), columns = form.indices.remainder(form.in);
        const auto products = x.to(form.values.scalar_type()).index_select(1, columns) * form.values;
        return at::zeros({x.size(0), form.out}, products.options())
            .index_add(1, rows, products)
            .to(x.scalar_type());
    }
    template <typename Other>
    Tensor operator()(const Other&) const {
        ETHER_ASSERT(false);
    }
};

// Forms that treat each token by itself (acts_by_row); of LowRank and BlockDiagonal those of a bank.
struct ApplyToRows {
    ops::Rows& rows;
    ops::Rows::Value x;
    const FormPass& pass;

    ops::Rows::Value operator()(const Rank1& form) const {
        const bool banked = form.left.dim() == 4;
        return ops::rank1(rows, x, form.left, form.right, form.coefficients, banked ? pass.rows : Tensor());
    }
    ops::Rows::Value operator()(const Scale& form) const {
        return ops::scale(rows, x, form.factor, pass.rows);
    }
    ops::Rows::Value operator()(const Shift& form) const {
        return ops::shift(rows, x, form.offset, pass.rows);
    }
    ops::Rows::Value operator()(const LowRank& form) const {
        const auto input =
            pass.training ? ops::dropout(rows, x, form.dropout, pass.random, pass.first_row) : x;
        const auto h = ops::token_product_transposed(rows, input, form.a.unsqueeze(1), pass.rows);
        // b's rows by rank, as a bank holds them (bank.h): a token then reads them one after the other.
        return ops::token_product(rows, h, form.b.transpose(1, 2).unsqueeze(1), pass.rows, form.scale);
    }
    ops::Rows::Value operator()(const BlockDiagonal& form) const {
        return ops::token_product(rows, x, form.blocks, pass.rows);
    }
    ops::Rows::Value operator()(const Overlay&) const { ETHER_ASSERT(false); }
};

// The transpose of a linear form, acting on rows.
Tensor apply_transposed(const Form& form, const Tensor& rows) {
    if (const auto* rank1 = std::get_if<Rank1>(&form))
        return ops::rank1(rows, rank1->right, rank1->left, rank1->coefficients);
    if (const auto* scale = std::get_if<Scale>(&form)) return rows * scale->factor;
    if (const auto* diagonal = std::get_if<BlockDiagonal>(&form))
        return apply_form(BlockDiagonal{diagonal->blocks.transpose(1, 2)}, rows);
    fail(ErrorKind::adapter, "this form cannot act on a site's input");
}

// The weight (out, in) that a delta adds.
struct DeltaWeight {
    Tensor operator()(const LowRank& form) const { return form.b.mm(form.a).mul(form.scale); }
    Tensor operator()(const Overlay& form) const {
        return at::zeros({form.out * form.in}, form.values.options())
            .index_add(0, form.indices, form.values)
            .view({form.out, form.in});
    }
    template <typename Other>
    Tensor operator()(const Other&) const {
        fail(ErrorKind::adapter, "this form cannot be a delta");
    }
};

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
    std::vector<Tensor*> operator()(Overlay& form) const { return {&form.values}; }
};

}  // namespace

bool acts_by_row(const Form& form) {
    if (const auto* low_rank = std::get_if<LowRank>(&form)) return low_rank->a.dim() == 3;
    if (const auto* diagonal = std::get_if<BlockDiagonal>(&form)) return diagonal->blocks.dim() == 4;
    return !std::holds_alternative<Overlay>(form);
}

std::vector<Tensor*> tensors_of(Form& form) { return std::visit(Tensors{}, form); }

std::vector<Tensor*> tensors_of(SiteForms& forms) {
    std::vector<Tensor*> all;
    for (auto* chain : {&forms.pre, &forms.post, &forms.output, &forms.delta})
        for (auto& form : *chain)
            for (Tensor* tensor : tensors_of(form)) all.push_back(tensor);
    return all;
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

ops::Rows::Value apply_chain(const std::vector<Form>& chain, ops::Rows& rows, ops::Rows::Value x,
                             const FormPass& pass) {
    for (const auto& form : chain) x = apply_form(form, rows, x, pass);
    return x;
}

Tensor apply_chain(const std::vector<Form>& chain, const Tensor& x, const FormPass& pass) {
    ops::Rows rows;
    return rows.run(apply_chain(chain, rows, rows.input(x), pass));
}

std::pair<Tensor, Tensor> merged(const SiteForms& forms, const Tensor& weight, const Tensor& bias) {
    const at::NoGradGuard no_grad;
    auto w = weight, b = bias;
    // W P_k .. P_1: the last pre form meets W first, and acts on its rows transposed.
    for (auto form = forms.pre.rbegin(); form != forms.pre.rend(); ++form)
        w = apply_transposed(*form, w.contiguous());
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
    for (const auto& form : forms.delta) w = w + std::visit(DeltaWeight{}, form);
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
    for (const auto& form : forms.delta) {
        const auto* low_rank = std::get_if<LowRank>(&form);
        if (!low_rank) fail_not_low_rank();
        a.push_back(low_rank->a.to(dtype));
        b.push_back(low_rank->b.to(dtype).mul(low_rank->scale));
    }
    return {at::cat(a, 0), at::cat(b, 1)};
}

}  // namespace ether::nn
