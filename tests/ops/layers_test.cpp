// The ops inside a transformer block and its loss: norms, rotary, activations, linear_cross_entropy, exp.
#include <gtest/gtest.h>

#include <limits>

#include "ether/core/random.h"
#include "ether/ops/cross_entropy/linear_cross_entropy.h"
#include "ether/ops/gelu/gelu.h"
#include "ether/ops/norm/layer_norm.h"
#include "ether/ops/norm/rms_norm.h"
#include "ether/ops/rotary/rotary.h"
#include "ether/ops/swiglu/swiglu.h"
#include "ether/ops/vector_math.h"
#include "gradcheck.h"

namespace ether::ops {
namespace {

using at::Tensor;
using test::gradcheck;
using test::near;
using test::normal;
using Tensors = std::vector<Tensor>;

constexpr double kFloatEps = 1.2e-7, kBfloatEps = 7.9e-3;

Tensor rms_reference(const Tensor& x, const Tensor& weight, double eps) {
    const auto wide = x.to(at::kDouble);
    return wide / (wide.square().mean({-1}, true) + eps).sqrt() * weight.to(at::kDouble);
}

TEST(RmsNorm, EqualsReferenceAndItsGradient) {
    for (const auto& [tokens, width] : {std::pair<int64_t, int64_t>{1, 1}, {3, 7}, {17, 64}, {40, 65}}) {
        const auto x = normal({tokens, width}, 1), w = normal({width}, 2);
        EXPECT_TRUE(near(rms_norm(x, w, 1e-5), rms_reference(x, w, 1e-5), 1e-14));
        EXPECT_TRUE(gradcheck([](const Tensors& in) { return rms_norm(in[0], in[1], 1e-2); },
                              {{"x", x}, {"weight", w}}));
        const double length = static_cast<double>(width);
        EXPECT_TRUE(near(rms_norm(x.to(at::kFloat), w.to(at::kFloat), 1e-5), rms_reference(x, w, 1e-5),
                         kFloatEps * (length + 4)));
        const auto narrow = x.to(at::kBFloat16), narrow_w = w.to(at::kBFloat16);
        EXPECT_TRUE(
            near(rms_norm(narrow, narrow_w, 1e-5), rms_reference(narrow, narrow_w, 1e-5), 2 * kBfloatEps));
    }
}

TEST(RmsNorm, OfEachHead) {
    const auto x = normal({5, 12}, 1), w = normal({4}, 2);
    const auto expected = rms_reference(x.view({15, 4}), w, 1e-5).view({5, 12});
    EXPECT_TRUE(near(rms_norm(x, w, 1e-5), expected, 1e-14));
}

Tensor layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, double eps) {
    Rows rows;
    return rows.run(layer_norm(rows, rows.input(x), weight, bias, eps));
}

TEST(LayerNorm, EqualsReferenceAndItsGradient) {
    for (const auto& [tokens, width] : {std::pair<int64_t, int64_t>{1, 2}, {3, 7}, {17, 64}, {40, 65}}) {
        const auto x = normal({tokens, width}, 1) + 3, w = normal({width}, 2), b = normal({width}, 3);
        const auto reference = [&](const Tensor& input) {
            return at::layer_norm(input.to(at::kDouble), {width}, w, b, 1e-5);
        };
        EXPECT_TRUE(near(layer_norm(x, w, b, 1e-5), reference(x), 1e-13));
        EXPECT_TRUE(gradcheck([](const Tensors& in) { return layer_norm(in[0], in[1], in[2], 1e-2); },
                              {{"x", x}, {"weight", w}, {"bias", b}}));
        const auto narrow = x.to(at::kFloat);
        EXPECT_TRUE(near(layer_norm(narrow, w, b, 1e-5), reference(narrow), 1e-5));
    }
}

Tensor own_gelu(const Tensor& x) {
    Rows rows;
    return rows.run(gelu(rows, rows.input(x)));
}

TEST(Gelu, EqualsReferenceAndItsGradient) {
    const auto x = normal({9, 37}, 1) * 3;
    EXPECT_TRUE(near(own_gelu(x), at::gelu(x), 1e-15));
    EXPECT_TRUE(gradcheck([](const Tensors& in) { return own_gelu(in[0]); }, {{"x", x}}));
    const auto grid = at::linspace(-9, 9, 100001, at::kFloat).view({-1, 1});
    EXPECT_LT((own_gelu(grid).to(at::kDouble) - at::gelu(grid.to(at::kDouble))).abs().max().item().toDouble(),
              2e-6);
    const auto wide = grid.view({1, -1}).requires_grad_(true),
               exact = wide.detach().to(at::kDouble).requires_grad_(true);
    own_gelu(wide).sum().backward();
    at::gelu(exact).sum().backward();
    EXPECT_LT((wide.grad().to(at::kDouble) - exact.grad()).abs().max().item<double>(), 2e-6);
    const auto narrow = x.to(at::kBFloat16);
    EXPECT_TRUE(near(own_gelu(narrow), at::gelu(narrow.to(at::kDouble)), kBfloatEps));
}

Tensor rotary(const Tensor& x, const Tensor& positions, const Tensor& cos, const Tensor& sin) {
    Rows rows;
    return rows.run(rotary(rows, rows.input(x), positions, cos, sin));
}

Tensor swiglu(const Tensor& gate, const Tensor& up) {
    Rows rows;
    const auto g = rows.input(gate), u = rows.input(up);
    return rows.run(swiglu(rows, g, u));
}

Tensor rotary_reference(const Tensor& x, const Tensor& positions, const Tensor& cos, const Tensor& sin) {
    const int64_t half = cos.size(1);
    const auto heads = x.to(at::kDouble).view({x.size(0), -1, 2 * half});
    const auto a = heads.narrow(2, 0, half), b = heads.narrow(2, half, half);
    const auto c = cos.to(at::kDouble).index_select(0, positions).unsqueeze(1),
               s = sin.to(at::kDouble).index_select(0, positions).unsqueeze(1);
    return at::cat({a * c - b * s, b * c + a * s}, 2).reshape(x.sizes());
}

TEST(Rotary, EqualsReferenceAndItsGradient) {
    const auto positions = at::tensor({0, 1, 2, 0, 1, 7, 3}, at::kLong);
    for (const auto& [heads, half] : {std::pair<int64_t, int64_t>{1, 1}, {2, 3}, {3, 8}}) {
        const auto angles = normal({8, half}, 4), x = normal({7, heads * 2 * half}, 1);
        const auto cos = angles.cos(), sin = angles.sin();
        const auto expected = rotary_reference(x, positions, cos, sin);
        EXPECT_TRUE(near(rotary(x, positions, cos, sin), expected, 1e-14));
        EXPECT_TRUE(
            gradcheck([&](const Tensors& in) { return rotary(in[0], positions, cos, sin); }, {{"x", x}}));
        const auto c = cos.to(at::kFloat), s = sin.to(at::kFloat);
        EXPECT_TRUE(near(rotary(x.to(at::kFloat), positions, c, s), expected, 4 * kFloatEps));
        const auto narrow = x.to(at::kBFloat16);
        EXPECT_TRUE(
            near(rotary(narrow, positions, c, s), rotary_reference(narrow, positions, c, s), kBfloatEps));
    }
}

TEST(Swiglu, EqualsReferenceAndItsGradient) {
    for (const int64_t width : {1, 5, 64}) {
        const auto gate = normal({9, width}, 1) * 3, up = normal({9, width}, 2);
        const auto reference = [](const Tensor& g, const Tensor& u) {
            return at::silu(g.to(at::kDouble)) * u.to(at::kDouble);
        };
        EXPECT_TRUE(near(swiglu(gate, up), reference(gate, up), 1e-15));
        EXPECT_TRUE(
            gradcheck([](const Tensors& in) { return swiglu(in[0], in[1]); }, {{"gate", gate}, {"up", up}}));
        EXPECT_TRUE(near(swiglu(gate.to(at::kFloat), up.to(at::kFloat)), reference(gate, up), 8 * kFloatEps));
        const auto g = gate.to(at::kBFloat16), u = up.to(at::kBFloat16);
        EXPECT_TRUE(near(swiglu(g, u), reference(g, u), kBfloatEps));
    }
    const auto extreme = at::tensor({-200.0F, 200.0F}).view({1, 2}), ones = at::ones({1, 2});
    EXPECT_TRUE(near(swiglu(extreme, ones), at::tensor({0.0F, 200.0F}).view({1, 2}), 1e-6));
}

Tensor loss_reference(const Tensor& hidden, const Tensor& weight, const Tensor& targets) {
    return at::cross_entropy_loss(hidden.to(at::kDouble).mm(weight.to(at::kDouble).t()), targets, {},
                                  at::Reduction::Sum, -100);
}

TEST(LinearCrossEntropy, EqualsReferenceAndItsGradient) {
    const auto hidden = normal({6, 5}, 1), weight = normal({9, 5}, 2);
    const auto targets = at::tensor({3, -100, 0, 8, -100, 2}, at::kLong);
    const auto function = [&](const Tensors& in) { return linear_cross_entropy(in[0], in[1], targets); };
    EXPECT_TRUE(near(function({hidden, weight}), loss_reference(hidden, weight, targets), 1e-14));
    EXPECT_TRUE(gradcheck(function, {{"hidden", hidden}, {"weight", weight}}));
    EXPECT_TRUE(gradcheck([&](const Tensors& in) { return linear_cross_entropy(in[0], weight, targets); },
                          {{"hidden", hidden}}));
    EXPECT_TRUE(near(function({hidden.to(at::kFloat), weight.to(at::kFloat)}),
                     loss_reference(hidden, weight, targets), 20 * kFloatEps));
    const auto ignored = at::full({6}, -100, at::kLong);
    EXPECT_EQ(linear_cross_entropy(hidden, weight, ignored).item<double>(), 0);
}

TEST(LinearCrossEntropy, ManyChunks) {  // a chunk holds 2^23 logits: 16 tokens of this vocabulary
    const int64_t tokens = 37, vocabulary = 500000;
    const auto hidden = normal({tokens, 3}, 1),
               weight = at::linspace(-1, 1, vocabulary * 3, at::kDouble).view({vocabulary, 3});
    const auto targets = at::arange(tokens, at::kLong) * 13000;
    auto gradients = [&](auto loss) {
        const auto h = hidden.clone().requires_grad_(true), w = weight.clone().requires_grad_(true);
        (loss(h, w, targets) / 3).backward();
        return Tensors{h.grad(), w.grad()};
    };
    const auto actual = gradients(linear_cross_entropy), expected = gradients(loss_reference);
    EXPECT_TRUE(
        near(linear_cross_entropy(hidden, weight, targets), loss_reference(hidden, weight, targets), 1e-13));
    EXPECT_TRUE(near(actual[0], expected[0], 1e-13));
    EXPECT_TRUE(near(actual[1], expected[1], 1e-13));
}

TEST(LinearCrossEntropy, Bfloat16IsWidenedRowByRow) {
    const auto hidden = normal({6, 5}, 1).to(at::kBFloat16), weight = normal({37, 5}, 2).to(at::kBFloat16);
    const auto targets = at::tensor({3, -100, 0, 36, -100, 2}, at::kLong);
    auto gradient = [&](auto loss, at::ScalarType dtype) {
        const auto h = hidden.to(dtype).detach().requires_grad_(true);
        loss(h, weight.to(dtype), targets).backward();
        return h.grad();
    };
    const auto loss = linear_cross_entropy(hidden, weight, targets);
    EXPECT_EQ(loss.scalar_type(), at::kFloat);
    EXPECT_TRUE(near(loss, loss_reference(hidden, weight, targets), kBfloatEps));
    const auto actual = gradient(linear_cross_entropy, at::kBFloat16),
               expected = gradient(loss_reference, at::kDouble);
    EXPECT_TRUE(near(actual, expected, 2 * kBfloatEps));
    EXPECT_EQ(actual[1].abs().max().item<double>(), 0);
}

TEST(VectorMath, ExpIsWithinTwoUnitsInTheLastPlace) {
    const Random random(5);
    for (uint64_t i = 0; i < 200000; ++i) {
        const auto x = static_cast<float>(-87.0 + 175.0 * random.uniform(i));
        const double exact = std::exp(static_cast<double>(x));
        const auto rounded = static_cast<float>(exact);
        const double unit =
            std::nextafter(rounded, std::numeric_limits<float>::infinity()) - static_cast<double>(rounded);
        ASSERT_LE(std::abs(static_cast<double>(exp(x)) - exact), 2 * unit) << "x = " << x;
        const auto wide = exp(Vector<float, 64>{} + x);
        ASSERT_LE(std::abs(static_cast<double>(wide[3]) - exact), 2 * unit) << "x = " << x;
        const auto narrow = exp(Vector<float, 32>{} + x);
        ASSERT_LE(std::abs(static_cast<double>(narrow[3]) - exact), 2 * unit) << "x = " << x;
    }
    EXPECT_EQ(exp(0.0F), 1.0F);
    EXPECT_EQ(exp(-88.0F), 0.0F);
    EXPECT_EQ(exp(-std::numeric_limits<float>::infinity()), 0.0F);
    for (const float nan :
         {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::quiet_NaN()}) {
        EXPECT_TRUE(std::isnan(exp(nan)));
        EXPECT_TRUE(std::isnan(exp(Vector<float, 32>{} + nan)[5]));
    }
}

}  // namespace
}  // namespace ether::ops
