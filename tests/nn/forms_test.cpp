// Forms by themselves: values, gradients, merging, factors, on any side.
#include "ether/nn/forms.h"

#include <gtest/gtest.h>

#include "ether/core/error.h"
#include "ether/nn/dense_product.h"
#include "ether/nn/site.h"
#include "ether/ops/swiglu/swiglu.h"
#include "gradcheck.h"
#include "io/test_files.h"

namespace ether::nn {
namespace {

using at::Tensor;
using test::gradcheck;
using test::near;
using test::normal;
using Tensors = std::vector<Tensor>;

// The (n b, n b) matrix R with y = x R.
Tensor dense(const Tensor& blocks) { return at::block_diag(blocks.unbind()); }

class BlockDiagonalForm : public testing::TestWithParam<std::pair<int64_t, int64_t>> {
  protected:
    const int64_t n = GetParam().first, b = GetParam().second, width = n * b;
    const Tensor blocks = normal({n, b, b}, 1), x = normal({7, width}, 2);
};

TEST_P(BlockDiagonalForm, EqualsTheDenseMatrixAndItsGradient) {
    EXPECT_TRUE(near(apply_form(BlockDiagonal{blocks}, x), x.mm(dense(blocks)), 1e-14));
    EXPECT_TRUE(gradcheck([](const Tensors& in) { return apply_form(BlockDiagonal{in[0]}, in[1]); },
                          {{"blocks", blocks}, {"x", x}}));
}

TEST_P(BlockDiagonalForm, EachTokenUsesItsBankEntry) {
    const auto bank = normal({3, n, b, b}, 3);
    const auto rows = at::tensor({2, 0, 2, 2, 0, 0, 2}, at::kInt);  // entry 1 is unused
    std::vector<Tensor> expected;
    for (int64_t token = 0; token < 7; ++token)
        expected.push_back(x.narrow(0, token, 1).mm(dense(bank[rows[token].item<int64_t>()])));
    const FormPass pass{.rows = rows};
    EXPECT_TRUE(near(apply_form(BlockDiagonal{bank}, x, pass), at::cat(expected), 1e-14));
    EXPECT_TRUE(gradcheck([&](const Tensors& in) { return apply_form(BlockDiagonal{in[0]}, in[1], pass); },
                          {{"bank", bank}, {"x", x}}));
}

// y = output(post(W pre(x)) + b), with another form beside it on the input: the order counts.
TEST_P(BlockDiagonalForm, MergeIsForward) {
    const auto weight = normal({width, width}, 4), bias = normal({width}, 5);
    SiteForms forms;
    forms.pre = {Scale{normal({width}, 6)}, BlockDiagonal{blocks}};
    forms.post = {BlockDiagonal{normal({n, b, b}, 7)}};
    forms.output = {BlockDiagonal{normal({n, b, b}, 8)}};
    const auto h = apply_chain(forms.pre, x, {});
    const auto y = apply_chain(forms.output, apply_chain(forms.post, h.mm(weight.t()), {}) + bias, {});
    const auto [w, shifted] = merged(forms, weight, bias);
    EXPECT_TRUE(near(x.mm(w.t()) + shifted, y, 1e-13));
    EXPECT_FAILS(adapter, "no exact LoRA form", lora_factors(forms, weight));
}

INSTANTIATE_TEST_SUITE_P(Shapes, BlockDiagonalForm,
                         testing::Values(std::pair{1, 1}, std::pair{1, 5}, std::pair{3, 4}, std::pair{6, 1}));

TEST(BlockDiagonalForm, NarrowActivationsKeepTheirType) {
    const auto blocks = normal({2, 4, 4}, 1, at::kFloat), x = normal({5, 8}, 2, at::kBFloat16);
    const auto y = apply_form(BlockDiagonal{blocks}, x);
    EXPECT_EQ(y.scalar_type(), at::kBFloat16);
    EXPECT_TRUE(near(y, x.to(at::kDouble).mm(dense(blocks.to(at::kDouble))), 7.9e-3));  // one rounding of y
}

// Pieces may be rectangular, and share one matrix.
TEST(BlockDiagonalForm, OfAnyShape) {
    const auto x = normal({7, 12}, 1), wide = normal({3, 4, 5}, 2), one = normal({1, 4, 5}, 3);
    EXPECT_TRUE(near(apply_form(BlockDiagonal{wide}, x), x.mm(dense(wide)), 1e-14));
    EXPECT_TRUE(near(apply_form(BlockDiagonal{one}, x), x.mm(dense(one.expand({3, 4, 5}))), 1e-14));
    for (const auto& blocks : {wide, one})
        EXPECT_TRUE(gradcheck([](const Tensors& in) { return apply_form(BlockDiagonal{in[0]}, in[1]); },
                              {{"blocks", blocks}, {"x", x}}));
}

TEST(PermuteForm, MovesFeaturesAndBack) {
    const auto x = normal({7, 12}, 1), order = normal({12}, 2).argsort();
    const auto y = apply_form(Permute{order}, x);
    EXPECT_TRUE(at::equal(y, x.index_select(1, order)));
    EXPECT_TRUE(at::equal(apply_form(Permute{order.argsort()}, y), x));
    EXPECT_TRUE(gradcheck([&](const Tensors& in) { return apply_form(Permute{order}, in[0]); }, {{"x", x}}));
}

// The dense matrix: cosines on the diagonal, sines beside it.
TEST(PairRotateForm, EqualsTheDenseMatrixAndItsGradient) {
    for (const auto& [width, half] :
         {std::pair{12, 1}, {12, 2}, {12, 6}, {6, 3}, {32, 8}, {80, 20}, {64, 32}}) {
        const auto x = normal({9, width}, 1), cosine = normal({width}, 2), sine = normal({width}, 3);
        auto matrix = at::diag(cosine);
        for (int64_t j = 0; j < width; ++j) matrix[j % (2 * half) < half ? j + half : j - half][j] = sine[j];
        EXPECT_TRUE(near(apply_form(PairRotate{cosine, sine, half}, x), x.mm(matrix), 1e-14));
        EXPECT_TRUE(
            near(apply_form(PairRotate{cosine.to(at::kFloat), sine.to(at::kFloat), half}, x.to(at::kFloat)),
                 x.mm(matrix), 1e-6));
        EXPECT_TRUE(gradcheck(
            [half = half](const Tensors& in) {
                return apply_form(PairRotate{in[0], in[1], half}, in[2]);
            },
            {{"cosine", cosine}, {"sine", sine}, {"x", x}}));
    }
}

Overlay overlay(int64_t out, int64_t in, int64_t count) {
    const auto places = normal({out * in}, 8).argsort().narrow(0, 0, count).contiguous();
    return {{std::make_shared<ops::SparsePattern>(ops::places_of(places, in), out, in)}, normal({count}, 9)};
}

TEST(OverlayForm, EqualsTheDenseMatrixAndItsGradient) {
    for (const int64_t tokens : {0, 1, 8, 9, 40}) {
        const auto x = normal({tokens, 5}, 1);
        const auto form = overlay(7, 5, 11);
        const auto matrix =
            at::zeros({35}, at::kDouble).index_put({form.patterns[0]->numbers()}, form.values).view({7, 5});
        EXPECT_TRUE(near(apply_form(form, x), x.mm(matrix.t()), 1e-14));
        if (tokens != 9) continue;
        EXPECT_TRUE(gradcheck(
            [&](const Tensors& in) {
                return apply_form(Overlay{form.patterns, in[0]}, in[1]);
            },
            {{"values", form.values}, {"x", x}}));
    }
}

TEST(DropoutForm, ActsInTrainingAlone) {
    const auto x = at::ones({50, 40}, at::kDouble);
    EXPECT_TRUE(at::equal(apply_form(Dropout{0.25}, x), x));
    const auto y = apply_form(Dropout{0.25}, x, {.training = true, .random = Random(3)});
    EXPECT_NEAR(y.mean().item<double>(), 1, 0.05);
    EXPECT_NEAR(y.eq(0).to(at::kDouble).mean().item<double>(), 0.25, 0.05);
}

// Of whole vectors, a low-rank branch is a part of the graph; else a product of all tokens. Both are one map.
TEST(LowRankBranch, ActsAloneBehindDropoutAndUnderOthers) {
    for (const int64_t rank : {0, 3, 4, 32, 36}) {
        const auto weight = normal({8, 12}, 1), x = normal({19, 12}, 2), left = normal({1, 2, 4}, 3);
        const LowRank form{normal({rank, 12}, 4), normal({8, rank}, 5), 0.7};
        EXPECT_EQ(acts_by_row(form), rank == 4 || rank == 32 || rank == 36);
        Linear linear{"layer", weight, {}};
        Site site(linear, 0, 0, false);
        const data::Batch batch;
        auto y_of = [&](const Tensor& a, const Tensor& b, const Tensor& input, const SiteForms& others) {
            site.forms = others;
            site.forms.delta = {{Dropout{0.5}, LowRank{a, b, form.scale}}};
            return site(input, {.batch = batch});
        };
        const auto change = form.scale * x.mm(form.a.t()).mm(form.b.t());
        EXPECT_TRUE(near(y_of(form.a, form.b, x, {}), x.mm(weight.t()) + change, 1e-13)) << rank;
        const SiteForms reflected{.post = {Rank1{left, left, {0.5}}}};
        site.forms = reflected;
        const auto base = site(x, {.batch = batch});
        EXPECT_TRUE(near(y_of(form.a, form.b, x, reflected), base + change, 1e-13)) << rank;
        if (rank == 0) continue;
        EXPECT_TRUE(test::gradcheck(
            [&](const std::vector<Tensor>& in) { return y_of(in[0], in[1], in[2], reflected); },
            {{"a", form.a}, {"b", form.b}, {"x", x}}));
    }
}

// In training, what a single site reads of a graph is made again in backward, whether its branch is a part of
// the next graph (rank 4) or a product of its own (rank 3), behind a dropout too.
TEST(LowRankBranch, ReadsWhatIsMadeAgain) {
    const auto weight = normal({8, 12}, 1), gate = normal({19, 12}, 2), up = normal({19, 12}, 3);
    const data::Batch batch;
    for (const int64_t rank : {3, 4})
        for (const double dropout : {0.0, 0.5}) {
            Site site({"layer", weight, {}}, 0, 0, false);
            auto y_of = [&](const Tensors& in, bool training) {
                site.forms.delta = {{Dropout{dropout}, LowRank{in[0], in[1], 0.7}}};
                ops::Rows rows, after;
                const auto x = ops::swiglu(rows, rows.input(in[2]), rows.input(in[3]));
                const Projections projection(rows, x, {&site},
                                             {.batch = batch, .training = training, .random = Random(5)});
                return after.run(projection.finish(0, after));
            };
            const test::NamedInputs inputs = {
                {"a", normal({rank, 12}, 4)}, {"b", normal({8, rank}, 5)}, {"gate", gate}, {"up", up}};
            const auto training = [&](const Tensors& in) { return y_of(in, true); };
            EXPECT_TRUE(test::gradcheck(training, inputs)) << rank << " " << dropout;
            if (dropout > 0) continue;
            const Tensors in = {inputs[0].second, inputs[1].second, gate, up};
            EXPECT_TRUE(at::equal(y_of(in, true), y_of(in, false)));
        }
}

// M = tanh(A B), (out, in).
Dense dense_form(int64_t out, int64_t in, uint64_t seed) {
    return {{normal({out, 3}, seed), normal({3, in}, seed + 1)},
            [](const Tensors& of) { return of[0].mm(of[1]).tanh(); },
            out};
}

TEST(DenseForm, EqualsItsMatrixAndItsGradient) {
    const auto form = dense_form(5, 7, 1);
    const auto x = normal({4, 7}, 3), weight = normal({5, 7}, 4), bias = normal({5}, 5);
    EXPECT_TRUE(near(dense_product(form, x, {}, {}), x.mm(form.matrix().t()), 1e-14));
    const auto y = x.mm((weight + form.matrix()).t()) + bias;
    EXPECT_TRUE(near(dense_product(form, x, weight, bias), y, 1e-14));
    Tensor streamed;
    const auto sink = [&](const Tensor& gradient) { streamed = gradient; };
    EXPECT_TRUE(gradcheck(
        [&](const Tensors& in) {
            return dense_product({{in[0], in[1]}, form.make, form.out}, in[2], in[3], in[4], sink);
        },
        {{"a", form.of[0]}, {"b", form.of[1]}, {"x", x}, {"weight", weight}, {"bias", bias}}));
    EXPECT_EQ(streamed.sizes(), weight.sizes());
    // Only one of the small tensors is trained, and the result is known: backward makes the matrix all the
    // same.
    const auto trained = form.of[1].clone().requires_grad_(true);
    const Dense known{{form.of[0], trained}, form.make, form.out};
    dense_product(known, x, weight, bias, {}, y).sum().backward();
    const auto alone = form.of[1].clone().requires_grad_(true);
    (x.mm(form.of[0].mm(alone).tanh().t())).sum().backward();
    EXPECT_TRUE(near(trained.grad(), alone.grad(), 1e-13));
}

TEST(DenseForm, KeepsNeitherTheMatrixNorTheSum) {
    std::vector<at::weak_intrusive_ptr<at::TensorImpl>> made;
    Dense form = dense_form(5, 7, 1);
    form.of[0].requires_grad_(true);
    form.make = [&, make = form.make](const Tensors& of) {
        const auto matrix = make(of);
        made.emplace_back(matrix.getIntrusivePtr());
        return matrix;
    };
    const auto y = dense_product(form, normal({4, 7}, 3), normal({5, 7}, 4), {});
    ASSERT_EQ(made.size(), 1u);
    EXPECT_TRUE(made[0].expired());
    y.sum().backward();
    EXPECT_EQ(made.size(), 2u);
    EXPECT_TRUE(made[1].expired());
}

// A site with sums of chains beside its product: what merging, exact factors and the memory estimate see.
struct Deltas {
    const char* name;
    std::vector<Chain> chains;
    int64_t rank;
};

class DeltaChains : public testing::TestWithParam<Deltas> {};

TEST_P(DeltaChains, MergeAndFactorsAreForward) {
    const auto weight = normal({10, 12}, 4), bias = normal({10}, 5), x = normal({7, 12}, 6);
    SiteForms forms;
    forms.delta = GetParam().chains;
    Linear linear{"layer", weight, bias};
    Site site(linear, 0, 0, false);
    site.forms = forms;
    const data::Batch batch;
    const auto y = site(x, {.batch = batch});
    const auto [w, b] = merged(forms, weight, bias);
    EXPECT_TRUE(near(x.mm(w.t()) + b, y, 1e-12));
    EXPECT_GT(test::distance(w, weight), 0.01);
    const auto [a, up] = lora_factors(forms, weight);
    EXPECT_EQ(a.size(0), GetParam().rank);
    EXPECT_TRUE(near(weight + up.mm(a), w, 1e-12));
    // Reflected on both sides, the sums stay outside.
    const auto left = normal({1, 2, 6}, 7), other = normal({1, 2, 5}, 8);
    forms.pre = {Rank1{left, left, {-1}}};
    forms.post = {Rank1{other, other, {0.5}}};
    site.forms = forms;
    const auto reflected = merged(forms, weight, bias);
    EXPECT_TRUE(near(x.mm(reflected.first.t()) + reflected.second, site(x, {.batch = batch}), 1e-12));
    const auto factors = lora_factors(forms, weight);
    EXPECT_TRUE(near(weight + factors.second.mm(factors.first), reflected.first, 1e-12));
}

INSTANTIATE_TEST_SUITE_P(
    Chains, DeltaChains,
    testing::Values(
        Deltas{"dense", {{dense_form(10, 12, 1)}}, 10},
        Deltas{"one_block", {{BlockDiagonal{normal({1, 12, 10}, 1)}}}, 10},
        Deltas{"dense_and_narrow", {{dense_form(4, 12, 1), BlockDiagonal{normal({1, 4, 10}, 3)}}}, 4},
        Deltas{"narrow_and_dense", {{BlockDiagonal{normal({1, 12, 4}, 3)}, dense_form(10, 4, 1)}}, 4},
        Deltas{"low_rank", {{Dropout{0.5}, LowRank{normal({3, 12}, 1), normal({10, 3}, 2), 0.7}}}, 3},
        Deltas{"blocks", {{BlockDiagonal{normal({2, 6, 5}, 1)}}}, 10},
        Deltas{"narrow",
               {{BlockDiagonal{normal({2, 6, 2}, 1)}, Permute{normal({4}, 2).argsort()},
                 BlockDiagonal{normal({2, 2, 5}, 3)}}},
               4},
        Deltas{"kronecker",
               {{BlockDiagonal{normal({1, 4, 5}, 1)}, Permute{normal({15}, 2).argsort()},
                 BlockDiagonal{normal({1, 3, 2}, 3)}}},
               10},
        Deltas{"overlay", {{overlay(10, 12, 9)}}, 10},
        Deltas{"sum",
               {{LowRank{normal({2, 12}, 1), normal({10, 2}, 2)}},
                {Scale{normal({12}, 3)}, LowRank{normal({3, 12}, 4), normal({10, 3}, 5)}},
                {overlay(10, 12, 3), PairRotate{normal({10}, 6), normal({10}, 7), 5}}},
               15}),
    [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace ether::nn
