// Forms: the few ways in which an adapter changes a linear site, as plain data:
//     y = output(post(W pre(x)) + b) + delta(x)
// A method describes itself in forms; this file's functions run, merge and export them for all methods alike.
#pragma once

#include <ATen/core/Tensor.h>

#include <utility>
#include <variant>
#include <vector>

#include "ether/core/random.h"
#include "ether/ops/rows/rows.h"

namespace ether::nn {

// Block-wise x + sum_k c_k left_k (right_k . x) over a feature axis of width d in n pieces.
// left, right: (terms, n, d/n), or (bank, terms, n, d/n).
struct Rank1 {
    at::Tensor left, right;
    std::vector<double> coefficients;
};

// scale * b (a x): a (r, in), b (out, r), or with a leading bank axis. As a delta only.
struct LowRank {
    at::Tensor a, b;
    double scale = 1;
    double dropout = 0;  // of the form's input
};

// factor * x, elementwise. factor: (d) or (bank, d).
struct Scale {
    at::Tensor factor;
};

// x + offset. offset: (d) or (bank, d). As output only.
struct Shift {
    at::Tensor offset;
};

// Block-wise x R: y_i = x_i R_i over a feature axis of n * b in n pieces of b. blocks: (n, b, b), or
// (bank, n, b, b). Not as a delta.
struct BlockDiagonal {
    at::Tensor blocks;
};

// values added to single entries of W. indices: (k) int64, row-major in (out, in); values: (k). As a delta
// only.
struct Overlay {
    at::Tensor indices, values;
    int64_t in = 0, out = 0;
};

using Form = std::variant<Rank1, LowRank, Scale, Shift, BlockDiagonal, Overlay>;

// A form's tensors that may be trained.
std::vector<at::Tensor*> tensors_of(Form& form);

// One site's change. Each list is applied in order.
struct SiteForms {
    double input_dropout = 0;  // ordinary dropout of x, before everything else
    std::vector<Form> pre;     // on x
    std::vector<Form> post;    // on W x, before the bias
    std::vector<Form> output;  // on W x + b
    std::vector<Form> delta;   // of x, added last

    bool empty() const {
        return input_dropout == 0 && pre.empty() && post.empty() && output.empty() && delta.empty();
    }
};

// Those of all its forms.
std::vector<at::Tensor*> tensors_of(SiteForms& forms);

// How forms act in one pass: dropouts, and which bank entry each token uses.
struct FormPass {
    bool training = false;
    Random random{0};
    at::Tensor rows = {};   // (T) int32 or undefined
    int64_t first_row = 0;  // Pass::first_token
};

// x (T, d) through one form. For a delta: its contribution, (T, out). Differentiable.
at::Tensor apply_form(const Form& form, const at::Tensor& x, const FormPass& pass = {});

// Whether a form treats each token by itself at no loss: reflections, scales, and all forms of a bank. Others
// are products of all tokens with one matrix.
bool acts_by_row(const Form& form);

// A value of a graph through one form: one that acts by row joins the graph, others run it up to them.
ops::Rows::Value apply_form(const Form& form, ops::Rows& rows, ops::Rows::Value x, const FormPass& pass);

// x through a chain, in order.
ops::Rows::Value apply_chain(const std::vector<Form>& chain, ops::Rows& rows, ops::Rows::Value x,
                             const FormPass& pass);
at::Tensor apply_chain(const std::vector<Form>& chain, const at::Tensor& x, const FormPass& pass);

// A site's weight (out, in) and bias (out, or undefined) with its forms multiplied in, in the weight's dtype,
// which must be float32 or float64. A form that shifts the output creates a bias.
std::pair<at::Tensor, at::Tensor> merged(const SiteForms& forms, const at::Tensor& weight,
                                         const at::Tensor& bias);

// Factors (A (r, in), B (out, r)) with merged weight = weight + B A, exactly: what a LoRA of rank r must
// hold. n reflected blocks on one side have rank n per term. Throws where a form is not low rank.
std::pair<at::Tensor, at::Tensor> lora_factors(const SiteForms& forms, const at::Tensor& weight);

}  // namespace ether::nn
