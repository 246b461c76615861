// The graph of row-wise operations: values, gradients and what it keeps, for every way in which a graph can
// be put together.
#include "ether/ops/rows/rows.h"

#include <gtest/gtest.h>

#include "ether/core/error.h"
#include "ether/core/parallel.h"
#include "ether/ops/dropout/dropout.h"
#include "ether/ops/elementwise/elementwise.h"
#include "ether/ops/norm/rms_norm.h"
#include "ether/ops/rank1/rank1.h"
#include "ether/ops/swiglu/swiglu.h"
#include "gradcheck.h"

namespace ether::ops {
namespace {

using at::Tensor;
using test::gradcheck;
using test::near;
using test::normal;
using Tensors = std::vector<Tensor>;

// A residual, a norm and what three reflected layers read of it: inputs x, y (T, 12), vectors (1, 3, 4), a
// weight.
struct Branches {
    Tensor x, y, vectors, weight;

    explicit Branches(int64_t tokens, uint64_t seed = 1)
        : x(normal({tokens, 12}, seed)),
          y(normal({tokens, 12}, seed + 1)),
          vectors(normal({1, 3, 4}, seed + 2)),
          weight(normal({12}, seed + 3)) {}

    Tensors inputs() const { return {x, y, vectors, weight}; }

    static Tensors fused(const Tensors& in) {
        Rows rows;
        const auto sum = add(rows, rows.input(in[0]), rank1(rows, rows.input(in[1]), in[2], in[2], {-2.0}));
        const auto n = rms_norm(rows, sum, in[3], 1e-2);
        const auto q = rank1(rows, n, in[2], in[2], {1.0}), k = scale(rows, n, in[3]);
        return rows.run({sum, q, swiglu(rows, k, n)});
    }
    static Tensors one_by_one(const Tensors& in) {
        const auto sum = in[0] + rank1(in[1], in[2], in[2], {-2.0});
        const auto n = sum / (sum.square().mean({-1}, true) + 1e-2).sqrt() * in[3];
        return {sum, rank1(n, in[2], in[2], {1.0}), at::silu(n * in[3]) * n};
    }
};

TEST(Rows, AGraphIsWhatItsOperationsAreOneByOne) {
    for (const int64_t tokens : {1, 7, 8, 9, 41}) {
        const Branches branches(tokens);
        const auto fused = Branches::fused(branches.inputs()),
                   single = Branches::one_by_one(branches.inputs());
        for (size_t i = 0; i < fused.size(); ++i) EXPECT_TRUE(near(fused[i], single[i], 1e-14));
    }
}

TEST(Rows, GradientsOfAllOutputsTogetherAndOfEachAlone) {
    const Branches branches(9);
    const std::vector<std::pair<std::string, Tensor>> inputs = {
        {"x", branches.x}, {"y", branches.y}, {"vectors", branches.vectors}, {"weight", branches.weight}};
    EXPECT_TRUE(gradcheck([](const Tensors& in) { return at::cat(Branches::fused(in), 1); }, inputs));
    for (size_t i = 0; i < 3; ++i)
        EXPECT_TRUE(gradcheck([i](const Tensors& in) { return Branches::fused(in)[i]; }, inputs)) << i;
}

TEST(Rows, FrozenInputsAndParametersTakeNoGradient) {
    Branches branches(20);
    for (const auto& trained : {branches.x, branches.y, branches.vectors, branches.weight}) {
        trained.requires_grad_(true);
        at::cat(Branches::fused(branches.inputs()), 1).square().sum().backward();
        const auto fused = trained.grad().clone();
        trained.mutable_grad().reset();
        at::cat(Branches::one_by_one(branches.inputs()), 1).square().sum().backward();
        EXPECT_TRUE(near(fused, trained.grad(), 1e-12));
        for (const auto& other : branches.inputs())
            EXPECT_FALSE(other.grad().defined() && !other.is_same(trained));
        trained.mutable_grad().reset();
        trained.requires_grad_(false);
    }
}

TEST(Rows, OneValueAsBothArguments) {
    EXPECT_TRUE(gradcheck(
        [](const Tensors& in) {
            Rows rows;
            const auto x = rows.input(in[0]);
            return rows.run(add(rows, swiglu(rows, x, x), add(rows, x, x)));
        },
        {{"x", normal({5, 6}, 1)}}));
}

TEST(Rows, ThreadsChangeNothingButRounding) {
    const Branches branches(100);
    for (const auto& input : branches.inputs()) input.requires_grad_(true);
    const int threads = num_threads();
    Tensors one_thread;
    for (const int count : {1, 4}) {
        set_num_threads(count);
        at::cat(Branches::fused(branches.inputs()), 1).square().sum().backward();
        for (size_t i = 0; i < 4; ++i) {
            auto& grad = branches.inputs()[i].mutable_grad();
            if (count == 1)
                one_thread.push_back(grad);
            else
                EXPECT_TRUE(near(grad, one_thread[i], 1e-12));
            grad.reset();
        }
    }
    set_num_threads(threads);
}

// How often the tensor or its storage is held.
int64_t holders(const Tensor& x) { return static_cast<int64_t>(x.use_count() + x.storage().use_count()); }

TEST(Rows, KeepsOnlyWhatBackwardReads) {
    const auto x = normal({5, 12}, 1), y = normal({5, 12}, 2).requires_grad_(true) * 2;
    const auto vectors = normal({1, 3, 4}, 3);
    auto run = [&](const Tensor& left) {
        Rows rows;
        return rows.run(add(rows, rows.input(x), rank1(rows, rows.input(y), left, left, {-2.0})));
    };
    const auto before = std::pair(holders(x), holders(y));
    const auto frozen = run(vectors);
    EXPECT_EQ(std::pair(holders(x), holders(y)), before);
    const auto trained = run(vectors.clone().requires_grad_(true));  // its vectors' gradient needs y
    EXPECT_EQ(holders(x), before.first);
    EXPECT_GT(holders(y), before.second);
}

TEST(Rows, GrowsAndRunsAgain) {
    const auto x = normal({6, 4}, 1), w = normal({4, 4}, 2);
    EXPECT_TRUE(gradcheck(
        [](const Tensors& in) {
            Rows rows;
            const auto n = dropout(rows, rows.input(in[0]), 0.3, Random(1));
            const auto product = rows.input(rows.run(n).mm(in[1]));
            return rows.run(add(rows, n, product));
        },
        {{"x", x}, {"w", w}}));
}

// Two graphs read one value, keep it or have it made again: the same gradients, and in the second case nobody
// holds it between forward and backward.
TEST(Rows, AValueThatIsMadeAgainInBackward) {
    const auto gradients = [](bool again) {
        Tensors in = {normal({9, 12}, 1), normal({9, 12}, 2), normal({12}, 3)};
        for (auto& tensor : in) tensor.requires_grad_(true);
        Rows rows;
        const auto wide = swiglu(rows, rows.input(in[0]), rows.input(in[1]));
        auto value = rows.run(wide);
        const auto remade = again ? std::make_shared<Remade>(rows, wide) : nullptr;
        const auto held = at::weak_intrusive_ptr<at::TensorImpl>(value.getIntrusivePtr());
        Tensors ends;
        for (int reader = 0; reader < 2; ++reader) {
            Rows reading;
            const auto x = reading.input(value, remade);
            ends.push_back(reading.run(swiglu(reading, scale(reading, x, in[2]), x)));
        }
        value = Tensor();
        EXPECT_EQ(held.expired(), again);
        (ends[0] * 3 + ends[1]).sum().backward();
        return Tensors{in[0].grad(), in[1].grad(), in[2].grad()};
    };
    const auto kept = gradients(false), made = gradients(true);
    for (size_t i = 0; i < kept.size(); ++i) EXPECT_TRUE(at::equal(kept[i], made[i])) << i;
}

TEST(Rows, BfloatIsFloatInBetween) {
    const Branches branches(9);
    auto narrow = branches.inputs();
    for (size_t i = 0; i < 4; ++i) narrow[i] = narrow[i].to(i < 2 ? at::kBFloat16 : at::kFloat);
    const auto y = Branches::fused(narrow);
    for (auto& input : narrow) input = input.to(at::kDouble);
    const auto exact = Branches::one_by_one(narrow);
    for (size_t i = 0; i < y.size(); ++i) {
        EXPECT_EQ(y[i].scalar_type(), at::kBFloat16);
        EXPECT_TRUE(near(y[i], exact[i], 7.9e-3));  // one rounding
    }
}

TEST(Rows, AnInputIsItsOwnValueAndNaNStaysInItsRow) {
    auto x = normal({9, 12}, 1).to(at::kFloat);
    Rows rows;
    const auto value = rows.input(x);
    EXPECT_TRUE(rows.run(value).is_same(x));
    x[4][7] = std::numeric_limits<float>::quiet_NaN();
    const auto y = rows.run(swiglu(rows, rms_norm(rows, value, at::ones({12}), 1e-5), value));
    const auto bad = y.isnan().any(1).to(at::kInt);
    EXPECT_EQ(bad.sum().item<int>(), 1);
    EXPECT_EQ(bad[4].item<int>(), 1);
}

}  // namespace
}  // namespace ether::ops
