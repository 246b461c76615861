// Forms: the few ways in which an adapter changes a linear site, as plain data:
//     y = output(post(W pre(x)) + b) + sum of delta(x)
// A method describes itself in forms; this file's functions run, merge and export them for all methods alike.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <optional>
#include <utility>
#include <variant>
#include <vector>

#include "ether/core/random.h"
#include "ether/nn/sequence_gate.h"
#include "ether/ops/overlay/overlay.h"
#include "ether/ops/rows/rows.h"

namespace ether::nn {

// Block-wise x + sum_k c_k left_k (right_k . x) over a feature axis of width d in n pieces.
// left, right: (terms, n, d/n), or (bank, terms, n, d/n).
struct Rank1 {
    at::Tensor left, right;
    std::vector<double> coefficients;
};

// scale * b (a x): a (r, in), b (out, r), or with a leading bank axis.
struct LowRank {
    at::Tensor a, b;
    double scale = 1;
};

// factor * x, elementwise. factor: (d) or (bank, d).
struct Scale {
    at::Tensor factor;
};

// x + offset. offset: (d) or (bank, d). As output only.
struct Shift {
    at::Tensor offset;
};

// Block-wise y_i = x_i B_i over a feature axis in n pieces. blocks: (n, in, out), or (1, in, out): one for
// all pieces, of which one piece is a dense matrix. With a leading bank axis likewise.
struct BlockDiagonal {
    at::Tensor blocks;
};

// y_j = x_{order_j}. order: (d) int64, a permutation.
struct Permute {
    at::Tensor order;
};

// y = cosine * x + sine * x', where x' is x with the two halves of every 2 * half features swapped. cosine,
// sine: (d) or (bank, d).
struct PairRotate {
    at::Tensor cosine, sine;
    int64_t half = 1;
};

// Ordinary dropout, in training alone.
struct Dropout {
    double probability = 0;
};

// Values at single entries of a matrix (out, in), one pattern or one a bank entry; values: (k), of all
// patterns, one after the other.
struct Overlay {
    ops::SparsePatterns patterns;
    at::Tensor values;
};

// y = x M^T with a matrix M (out, in) that is too large to be kept for every layer: it is made of smaller
// tensors when a pass needs it, and once more in backward. make: differentiable in `of`, and reads nothing
// else that is trained.
struct Dense {
    using Make = std::function<at::Tensor(const std::vector<at::Tensor>& of)>;
    std::vector<at::Tensor> of;
    Make make;
    int64_t out = 0;

    at::Tensor matrix() const { return make(of); }
};

// Besides, SequenceGate: x times its sequence's factor, which follows from x. Never merged.
using Form = std::variant<Rank1, LowRank, Scale, Shift, BlockDiagonal, Permute, PairRotate, Dropout, Overlay,
                          Dense, SequenceGate>;
// Forms one after the other.
using Chain = std::vector<Form>;

// A form's tensors that may be trained.
std::vector<at::Tensor*> tensors_of(Form& form);

// One site's change.
struct SiteForms {
    double input_dropout = 0;  // ordinary dropout of x, before everything else
    Chain pre;                 // on x
    Chain post;                // on W x, before the bias
    Chain output;              // on W x + b
    std::vector<Chain> delta;  // of x, each added last

    bool empty() const {
        return input_dropout == 0 && pre.empty() && post.empty() && output.empty() && delta.empty();
    }
};

// Those of all its forms.
std::vector<at::Tensor*> tensors_of(SiteForms& forms);

// Whether one of its forms is a Dropout.
bool drops(const SiteForms& forms);

// How forms act in one pass: dropouts, and which bank entry each token uses.
struct FormPass {
    bool training = false;
    Random random{0};
    at::Tensor rows = {};     // (T) int32 or undefined
    int64_t first_row = 0;    // Pass::first_token
    at::Tensor offsets = {};  // Pass::sequence_offsets, for gates
};

// The width of what a form makes of x, which is `width` wide.
int64_t width_after(const Form& form, int64_t width);

// x (T, d) through one form. Differentiable.
at::Tensor apply_form(const Form& form, const at::Tensor& x, const FormPass& pass = {});

// Whether a form treats each token by itself at no loss: reflections, scales, moves of features, products
// with small or thin matrices, and all forms of a bank. Others are products of all tokens with one matrix.
bool acts_by_row(const Form& form);

// A value of a graph through one form: one that acts by row joins the graph, others run it up to them.
ops::Rows::Value apply_form(const Form& form, ops::Rows& rows, ops::Rows::Value x, const FormPass& pass);

// x through a chain, in order.
ops::Rows::Value apply_chain(const Chain& chain, ops::Rows& rows, ops::Rows::Value x, const FormPass& pass);
at::Tensor apply_chain(const Chain& chain, const at::Tensor& x, const FormPass& pass);

// The matrix M, if a site's only change besides W is one such addition in W's dtype: then W + M is as good as
// two products.
std::optional<Dense> dense_delta(const SiteForms& forms, at::ScalarType dtype);

// A site's weight (out, in) and bias (out, or undefined) with its forms multiplied in, in the weight's dtype,
// which must be float32 or float64. A form that shifts the output creates a bias.
std::pair<at::Tensor, at::Tensor> merged(const SiteForms& forms, const at::Tensor& weight,
                                         const at::Tensor& bias);

// Factors (A (r, in), B (out, r)) with merged weight = weight + B A, exactly: what a LoRA of rank r must
// hold. n reflected blocks on one side have rank n per term, a delta has the smallest width on its way.
// Throws where the product with W is changed by what is not low rank.
std::pair<at::Tensor, at::Tensor> lora_factors(const SiteForms& forms, const at::Tensor& weight);

}  // namespace ether::nn
