// Forms that no method uses yet.
#include "ether/nn/forms.h"

#include <gtest/gtest.h>

#include "ether/core/error.h"
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

TEST(BlockDiagonalForm, IsNoDelta) {
    SiteForms forms;
    forms.delta = {BlockDiagonal{normal({2, 2, 2}, 1)}};
    EXPECT_FAILS(adapter, "this form cannot be a delta", merged(forms, normal({4, 4}, 2), {}));
}

}  // namespace
}  // namespace ether::nn
