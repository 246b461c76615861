// The ops under an adapter's forms and base layers: rank1, unit, linear, dropout.
#include <gtest/gtest.h>

#include <array>
#include <cmath>

#include "ether/core/error.h"
#include "ether/core/parallel.h"
#include "ether/ops/block_product/block_product.h"
#include "ether/ops/composed.h"
#include "ether/ops/dropout/dropout.h"
#include "ether/ops/gemm/gemm.h"
#include "ether/ops/gpu/launcher.h"
#include "ether/ops/linear/linear.h"
#include "ether/ops/permute/permute.h"
#include "ether/ops/rank1/rank1.h"
#include "ether/ops/unit/unit.h"
#include "gradcheck.h"

namespace ether::ops {
namespace {

using at::Tensor;
using test::gradcheck;
using test::near;
using test::normal;
using Tensors = std::vector<Tensor>;

constexpr double kFloatEps = 1.2e-7, kBfloatEps = 7.9e-3;

// x + sum_k c_k left_k (right_k . x) in double, from einsum alone.
Tensor rank1_reference(const Tensor& x, const Tensor& left, const Tensor& right, const std::vector<double>& c,
                       const Tensor& rows = {}) {
    const auto bank_of = [&](const Tensor& v) {
        const auto wide = v.to(at::kDouble);
        if (rows.defined()) return wide.index_select(0, rows.to(at::kLong));
        return wide.unsqueeze(0).expand({x.size(0), v.size(0), v.size(1), v.size(2)});
    };
    const auto l = bank_of(left), r = bank_of(right);
    const auto blocks = x.to(at::kDouble).view({x.size(0), l.size(2), l.size(3)});
    const auto dots = at::einsum("tns,tkns->tkn", {blocks, r});
    const auto weights = at::tensor(at::ArrayRef<double>(c), at::kDouble).view({1, -1, 1});
    return (blocks + at::einsum("tkn,tkns->tns", {dots * weights, l})).reshape(x.sizes());
}

struct Rank1Case {
    int64_t tokens, terms, blocks, size, bank;
};

class Rank1 : public testing::TestWithParam<Rank1Case> {
  protected:
    const Rank1Case c = GetParam();
    std::vector<double> coefficients() const {
        std::vector<double> all = {-2, 1, 0.7};
        all.resize(static_cast<size_t>(c.terms));
        return all;
    }
    std::vector<int64_t> vector_shape() const {
        std::vector<int64_t> shape = {c.terms, c.blocks, c.size};
        if (c.bank) shape.insert(shape.begin(), c.bank);
        return shape;
    }
    Tensor rows() const { return c.bank ? at::arange(c.tokens, at::kInt).remainder(c.bank) : Tensor(); }
    Tensor x = normal({c.tokens, c.blocks*c.size}, 1), left = normal(vector_shape(), 2),
           right = normal(vector_shape(), 3);
};

TEST_P(Rank1, EqualsReferenceAndItsGradient) {
    const auto function = [&](const Tensors& in) {
        return rank1(in[0], in[1], in[2], coefficients(), rows());
    };
    EXPECT_TRUE(
        near(function({x, left, right}), rank1_reference(x, left, right, coefficients(), rows()), 1e-14));
    EXPECT_TRUE(gradcheck(function, {{"x", x}, {"left", left}, {"right", right}}));
    EXPECT_TRUE(gradcheck([&](const Tensors& in) { return function({in[0], left, right}); }, {{"x", x}}));
}

TEST_P(Rank1, VectorsThatAreLeftAndRight) {  // a reflection's, with one gradient
    const auto both = [&](const Tensors& in) { return rank1(in[0], in[1], in[1], coefficients(), rows()); };
    EXPECT_TRUE(gradcheck(both, {{"x", x}, {"both", left}}));
    EXPECT_TRUE(gradcheck([&](const Tensors& in) { return both({x, in[0]}); }, {{"both", left}}));
    // In one memory, but only one of them trained: as if it had its own.
    const auto upstream = normal(x.sizes(), 4);
    const auto gradient = [&](at::ScalarType dtype, bool of_left, bool own_memory) {
        const auto trained = left.to(dtype).clone().requires_grad_(true);
        const auto frozen = own_memory ? trained.detach().clone() : trained.detach();
        const auto &l = of_left ? trained : frozen, &r = of_left ? frozen : trained;
        rank1(x.to(dtype), l, r, coefficients(), rows()).backward(upstream.to(dtype));
        return trained.grad();
    };
    for (const bool of_left : {true, false}) {
        const auto exact = gradient(at::kDouble, of_left, true);
        EXPECT_TRUE(near(gradient(at::kDouble, of_left, false), exact, 1e-14));
        EXPECT_TRUE(near(gradient(at::kFloat, of_left, false), exact,
                         kFloatEps * static_cast<double>(4 + c.size + c.tokens)));
    }
}

TEST_P(Rank1, NarrowTypesFollowDouble) {
    const auto exact =
        rank1_reference(x.to(at::kFloat), left.to(at::kFloat), right.to(at::kFloat), coefficients(), rows());
    const double length = static_cast<double>(c.size * c.terms);
    const auto l = left.to(at::kFloat), r = right.to(at::kFloat);
    EXPECT_TRUE(near(rank1(x.to(at::kFloat), l, r, coefficients(), rows()), exact, kFloatEps * (4 + length)));
    const auto narrow = x.to(at::kBFloat16);
    const auto y = rank1(narrow, l, r, coefficients(), rows());
    EXPECT_EQ(y.scalar_type(), at::kBFloat16);
    EXPECT_TRUE(
        near(y, rank1_reference(narrow, l, r, coefficients(), rows()), kBfloatEps));  // one rounding of y
}

INSTANTIATE_TEST_SUITE_P(Shapes, Rank1,
                         testing::Values(Rank1Case{1, 1, 1, 1, 0}, Rank1Case{5, 1, 1, 8, 0},
                                         Rank1Case{17, 1, 4, 3, 0}, Rank1Case{33, 2, 1, 7, 0},
                                         Rank1Case{9, 2, 3, 16, 0}, Rank1Case{7, 3, 2, 5, 0},
                                         Rank1Case{8, 1, 2, 4, 3}, Rank1Case{35, 2, 4, 4, 2},
                                         Rank1Case{6, 3, 1, 9, 4}));

TEST(Rank1, FrozenVectorsAndViews) {
    const auto x = normal({6, 8}, 1), left = normal({8, 2, 2}, 2).permute({1, 2, 0}).slice(2, 0, 4),
               right = left;
    ASSERT_FALSE(left.is_contiguous());
    const auto y = rank1(x.clone().requires_grad_(true), left, right, {-2, 1}, {});
    EXPECT_TRUE(near(y, rank1_reference(x, left, right, {-2, 1}), 1e-14));
    y.sum().backward();  // neither left nor right takes a gradient
}

TEST(Rank1, SumsDoNotDependOnTheBank) {  // unused entries get a zero gradient, not garbage
    const auto x = normal({4, 4}, 1), left = normal({2, 1, 1, 4}, 2).requires_grad_(true),
               right = normal({2, 1, 1, 4}, 3);
    rank1(x, left, right, {1}, at::zeros({4}, at::kInt)).sum().backward();
    EXPECT_EQ(test::largest(left.grad()[1]), 0);
    EXPECT_GT(test::largest(left.grad()[0]), 0);
}

TEST(Unit, LengthOneAndGradient) {
    for (const int64_t size : {1, 2, 7, 64}) {
        const auto v = normal({2, 3, size}, static_cast<uint64_t>(size)) * 5;
        EXPECT_TRUE(near(unit(v), v / v.norm(2, {-1}, true), 1e-15));
        EXPECT_TRUE(near(unit(v.to(at::kFloat)), v / v.norm(2, {-1}, true),
                         kFloatEps * static_cast<double>(size + 2)));
        EXPECT_TRUE(gradcheck([](const Tensors& in) { return unit(in[0]); }, {{"v", v}}));
    }
}

// Stacks of several sizes and numbers of vectors, one of which is frozen and one not used.
TEST(Unit, ManyAreTheSame) {
    const auto stacks = [](const Tensors& in) {
        return std::vector<std::vector<Tensor>>{{in[0], in[1]}, {in[2]}, {in[3]}, {in[4].detach()}};
    };
    const std::vector<std::pair<const char*, Tensor>> vectors = {{"a", normal({4, 3}, 1)},
                                                                 {"b", normal({4, 3}, 2)},
                                                                 {"c", normal({2, 6}, 3)},
                                                                 {"d", normal({2, 3}, 4)},
                                                                 {"frozen", normal({1, 3}, 5)}};
    Tensors in;
    for (const auto& [name, v] : vectors) in.push_back(v);
    const auto all = units(stacks(in));
    for (size_t i = 0; i < all.size(); ++i) {
        const auto expected = unit(at::stack(stacks(in)[i]));
        EXPECT_EQ(all[i].sizes(), expected.sizes());
        EXPECT_TRUE(near(all[i], expected, 0));
    }
    EXPECT_TRUE(gradcheck(
        [&](const Tensors& x) {
            return at::cat({units(stacks(x))[0].flatten(), units(stacks(x))[2].flatten()});
        },
        {{"a", in[0]}, {"b", in[1]}, {"c", in[2]}, {"d", in[3]}, {"frozen", in[4]}}));
}

TEST(Unit, ZeroHasNoDirection) {
    // NaN there, of which a device would have to be asked.
    if (runs_composed(at::zeros({1})) || kernels_of(at::kCPU)) GTEST_SKIP();
    EXPECT_THROW(unit(at::zeros({2, 3})), Error);
    EXPECT_THROW(unit(at::full({1, 2}, std::numeric_limits<float>::infinity())), Error);
}

// The library behind the base products changes with size and type; every one follows double.
TEST(Gemm, EqualsReferenceAtAllSizes) {
    for (const auto& [tokens, in, out] : std::vector<std::array<int64_t, 3>>{{1, 7, 5},
                                                                             {3, 64, 64},
                                                                             {129, 96, 100},
                                                                             {257, 65, 67},
                                                                             {64, 768, 49},
                                                                             {1, 1100, 1000},
                                                                             {0, 8, 8}}) {
        const auto x = normal({tokens, in}, 1), g = normal({tokens, out}, 2), w = normal({out, in}, 3),
                   b = normal({out}, 4);
        for (const auto dtype : {at::kDouble, at::kFloat, at::kBFloat16}) {
            const auto to = [&](const Tensor& t) { return t.to(dtype); };
            const auto wide = [&](const Tensor& t) { return t.to(dtype).to(at::kDouble); };
            const double eps = dtype == at::kDouble ? 1e-14 : dtype == at::kFloat ? kFloatEps : kBfloatEps;
            const double tolerance = eps * 4 * std::sqrt(static_cast<double>(in + out));
            EXPECT_TRUE(
                near(gemm_nt(to(x), to(w), to(b)), at::addmm(wide(b), wide(x), wide(w).t()), tolerance));
            EXPECT_TRUE(near(gemm_nt(to(x), to(w)), at::mm(wide(x), wide(w).t()), tolerance));
            EXPECT_TRUE(near(gemm_nn(to(g), to(w)), at::mm(wide(g), wide(w)), tolerance));
        }
    }
}

TEST(Gemm, ARowOfNaNDoesNotSpread) {
    auto x = normal({130, 128}, 1).to(at::kFloat);
    x[70].fill_(NAN);
    const auto w = normal({96, 128}, 2).to(at::kFloat);
    const auto bad = gemm_nt(x, w).isnan().any(1);
    EXPECT_EQ(bad.sum().item<int64_t>(), 1);
    EXPECT_TRUE(bad[70].item<bool>());
}

TEST(Linear, EqualsReferenceAndItsGradient) {
    for (const auto& [tokens, in, out] :
         {std::tuple<int64_t, int64_t, int64_t>{1, 1, 1}, {5, 3, 4}, {33, 17, 31}}) {
        const auto x = normal({tokens, in}, 1), w = normal({out, in}, 2), b = normal({out}, 3);
        EXPECT_TRUE(near(ops::linear(x, w, b), x.mm(w.t()) + b, 1e-14));
        EXPECT_TRUE(near(ops::linear(x, w, Tensor()), x.mm(w.t()), 1e-14));
        EXPECT_TRUE(gradcheck([](const Tensors& t) { return ops::linear(t[0], t[1], t[2]); },
                              {{"x", x}, {"weight", w}, {"bias", b}}));
        EXPECT_TRUE(gradcheck([&](const Tensors& t) { return ops::linear(t[0], w, b); }, {{"x", x}}));
        EXPECT_TRUE(gradcheck([&](const Tensors& t) { return ops::linear(x, w, t[0]); }, {{"bias", b}}));
        const auto narrow = ops::linear(x.to(at::kFloat), w.to(at::kFloat), b.to(at::kFloat));
        EXPECT_TRUE(near(narrow, x.mm(w.t()) + b, kFloatEps * static_cast<double>(in + 2)));
    }
}

TEST(Linear, StreamsTheGradientOfAFrozenWeight) {
    const auto x = normal({6, 5}, 1).requires_grad_(true), w = normal({4, 5}, 2),
               cotangent = normal({6, 4}, 3);
    Tensor streamed;
    int calls = 0;
    (ops::linear(x, w, {}, [&](const Tensor& gradient) { streamed = gradient.clone(), ++calls; }) * cotangent)
        .sum()
        .backward();
    EXPECT_EQ(calls, 1);
    EXPECT_TRUE(near(streamed, cotangent.t().mm(x), 1e-14));
    EXPECT_TRUE(near(x.grad(), cotangent.mm(w), 1e-14));
    EXPECT_FALSE(w.grad().defined());
    // The first layer's input has no graph of its own.
    streamed = Tensor();
    (ops::linear(x.detach(), w, {}, [&](const Tensor& gradient) { streamed = gradient.clone(); }) * cotangent)
        .sum()
        .backward();
    EXPECT_TRUE(near(streamed, cotangent.t().mm(x), 1e-14));
}

TEST(Linear, BfloatWithFloatWeights) {  // a trained float32 copy over bfloat16 activations
    const auto x = normal({6, 16}, 1, at::kBFloat16), w = normal({8, 16}, 2, at::kFloat).requires_grad_(true);
    const auto y = ops::linear(x, w, Tensor());
    EXPECT_EQ(y.scalar_type(), at::kBFloat16);
    EXPECT_TRUE(near(y, x.to(at::kDouble).mm(w.to(at::kDouble).t()), 4 * kBfloatEps));
    y.sum().backward();
    EXPECT_EQ(w.grad().scalar_type(), at::kFloat);
}

// Pieces of many shapes, a shared matrix, an odd number of tokens.
TEST(BlockProduct, IsAProductPieceByPiece) {
    struct Case {
        int64_t tokens, pieces, in, out;
        bool shared;
    };
    for (const auto& [tokens, pieces, in, out, shared] : {Case{19, 3, 8, 8, false},
                                                          {1, 2, 32, 32, false},
                                                          {9, 5, 16, 24, false},
                                                          {64, 2, 24, 8, true},
                                                          {17, 1, 40, 4, false},
                                                          {11, 1, 12, 28, false},
                                                          {7, 3, 6, 5, false},
                                                          {19, 36, 4, 4, false},
                                                          {3, 7, 4, 4, false},
                                                          {1, 2, 4, 4, false},
                                                          {9, 5, 4, 4, true},
                                                          {9, 1, 4, 4, false},
                                                          {0, 2, 8, 8, false}}) {
        for (const auto dtype : {at::kDouble, at::kFloat, at::kBFloat16}) {
            const auto compute = dtype == at::kBFloat16 ? at::kFloat : dtype;
            const auto x = normal({tokens, pieces * in}, 1, dtype),
                       blocks = normal({shared ? 1 : pieces, in, out}, 2, compute);
            Rows rows;
            const auto y = rows.run(block_product(rows, rows.input(x), blocks, 0.5));
            const auto expected =
                at::einsum("tni,nij->tnj", {x.to(at::kDouble).view({tokens, pieces, in}),
                                            blocks.to(at::kDouble).expand({pieces, in, out})})
                    .mul(0.5)
                    .reshape({tokens, pieces * out});
            EXPECT_TRUE(
                near(y, expected,
                     dtype == at::kDouble ? 1e-13 : 40 * (dtype == at::kFloat ? kFloatEps : kBfloatEps)));
        }
        if (tokens > 0 && tokens < 20) {
            EXPECT_TRUE(gradcheck(
                [&](const Tensors& inputs) {
                    Rows rows;
                    return rows.run(block_product(rows, rows.input(inputs[0]), inputs[1], 0.5));
                },
                {{"x", normal({tokens, pieces * in}, 1)},
                 {"blocks", normal({shared ? 1 : pieces, in, out}, 2)}}));
        }
    }
}

TEST(BlockProduct, IsForSmallOrThinMatricesOfWholeVectors) {
    for (const auto& [shape, suits] : {std::pair<std::vector<int64_t>, bool>{{2, 8, 8}, true},
                                       {{9, 256, 16}, true},
                                       {{1, 8, 8}, true},
                                       {{1, 8, 4096}, true},
                                       {{1, 4096, 32}, true},
                                       {{1, 4096, 64}, false},
                                       {{1, 4096, 0}, false},
                                       {{1, 128, 128}, false},
                                       {{2, 12, 8}, true},
                                       {{2, 10, 8}, false},
                                       {{2, 8, 264}, false}})
        EXPECT_EQ(suits_block_product(at::empty(shape)), suits);
}

// Features that move one by one, or in runs of any length.
TEST(Permute, MovesFeatures) {
    for (const int64_t run : {1, 2, 3, 4, 8, 16, 32}) {
        const int64_t width = 6 * run;
        const auto order =
            (at::tensor({3, 5, 0, 4, 2, 1}, at::kLong).unsqueeze(1) * run + at::arange(run)).reshape({width});
        for (const auto dtype : {at::kDouble, at::kFloat, at::kBFloat16})
            for (const int64_t tokens : {0, 1, 19}) {
                const auto x = normal({tokens, width}, 1, dtype);
                Rows rows;
                EXPECT_TRUE(
                    at::equal(rows.run(permute(rows, rows.input(x), order)), x.index_select(1, order)));
            }
        EXPECT_TRUE(gradcheck(
            [&](const Tensors& inputs) {
                Rows rows;
                return rows.run(permute(rows, rows.input(inputs[0]), order));
            },
            {{"x", normal({3, width}, 1)}}));
    }
}

TEST(Dropout, KeepsTheMeanAndRepeatsItsMask) {
    const auto ones = at::ones({100, 1000}, at::kFloat);
    for (const double p : {0.1, 0.5}) {
        const auto y = dropout(ones, p, Random(7));
        const auto kept = y.ne(0).to(at::kDouble).mean().item<double>();
        EXPECT_NEAR(kept, 1 - p, 5 * std::sqrt(p * (1 - p) / 1e5));  // five standard deviations
        EXPECT_NEAR(y.max().item<double>(), 1 / (1 - p), 1e-6);
        EXPECT_TRUE(at::equal(y, dropout(ones, p, Random(7))));
        EXPECT_FALSE(at::equal(y, dropout(ones, p, Random(8))));
        EXPECT_TRUE(gradcheck([&](const Tensors& in) { return dropout(in[0], p, Random(7)); },
                              {{"x", normal({5, 9}, 1)}}));
    }
    EXPECT_TRUE(dropout(ones, 0, Random(7)).is_same(ones));
}

}  // namespace
}  // namespace ether::ops
