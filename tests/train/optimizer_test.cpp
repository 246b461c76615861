// AdamW against torch.optim.AdamW (tests/train/make_adamw.py prints the table), its state, and the schedules.
#include "ether/train/optimizer.h"

#include <gtest/gtest.h>

#include <limits>

#include "ether/train/schedule.h"
#include "io/test_files.h"
#include "tensors.h"

namespace ether::train {
namespace {

using at::Tensor;
using test::near;
using Values = std::vector<double>;

Tensor tensor(const Values& values) { return at::tensor(at::ArrayRef<double>(values), at::kDouble); }

const Values kStart = {0.5, -1.25, 2.0}, kCurvature = {1.0, 10.0, 0.01};

// Steps on f(x) = sum(c x^2 / 2).
void step(AdamW& optimizer, const Tensor& x, double scale = 1) {
    x.mutable_grad() = tensor(kCurvature).to(x.scalar_type()) * x.detach() / scale;
    optimizer.step(1, scale);
}

struct Row {
    int steps;
    double lr, decay;
    AdamWOptions options;
    Values expected;
};

const std::vector<Row> kTable = {
    {1, 0.1, 0, {}, {0.400000002, -1.15000000008, 1.90000004999997}},
    {2, 0.1, 0, {}, {0.30118742373064, -1.05030372651867, 1.8001665866886}},
    {25, 0.1, 0, {}, {0.0998716076063142, 0.275597247109467, -0.0467363323068428}},
    {1, 0.05, 0.1, {}, {0.447500001, -1.19375000004, 1.94000002499999}},
    {2, 0.05, 0.1, {}, {0.395483293774427, -1.13785447321282, 1.88034553651677}},
    {25, 0.05, 0.1, {}, {-0.080093002512641, -0.10045547283065, 0.681132422821195}},
    {1, 0.1, 0.02, {0.8, 0.95, 1e-3}, {0.399199600798403, -1.14750799936005, 1.9007619047619}},
    {2, 0.1, 0.02, {0.8, 0.95, 1e-3}, {0.300199366705929, -1.04567812463089, 1.8020767383401}},
    {25, 0.1, 0.02, {0.8, 0.95, 1e-3}, {-0.0171462214638046, 0.0821833170200396, 0.119210371178707}},
};

TEST(AdamW, HasTorchsNumbers) {
    for (const auto& row : kTable) {
        for (const auto& [dtype, tolerance] : {std::pair{at::kDouble, 1e-14}, {at::kFloat, 2e-6}}) {
            const auto x = tensor(kStart).to(dtype).requires_grad_(true);
            AdamW optimizer({{"x", x, row.lr, row.decay}}, row.options);
            for (int i = 0; i < row.steps; ++i) step(optimizer, x);
            EXPECT_TRUE(near(x, tensor(row.expected), tolerance)) << row.steps << " steps, lr " << row.lr;
        }
    }
}

TEST(AdamW, GradientScaleIsAsIfTheGradientWereScaled) {
    const auto x = tensor(kStart).requires_grad_(true), y = tensor(kStart).requires_grad_(true);
    AdamW plain({{"x", x, 0.1, 0}}), scaled({{"y", y, 0.1, 0}});
    for (int i = 0; i < 5; ++i) step(plain, x), step(scaled, y, 0.25);
    EXPECT_TRUE(near(y, x, 1e-15));
}

TEST(AdamW, RatesArePerParameterAndScheduled) {
    const auto x = tensor(kStart).requires_grad_(true), y = tensor(kStart).requires_grad_(true);
    AdamW optimizer({{"x", x, 0.1, 0}, {"y", y, 0.01, 0}});
    x.mutable_grad() = at::ones({3}, at::kDouble), y.mutable_grad() = at::ones({3}, at::kDouble);
    optimizer.step(0.5);  // the first step has size lr
    EXPECT_TRUE(near(x, tensor(kStart) - 0.05, 1e-8));
    EXPECT_TRUE(near(y, tensor(kStart) - 0.005, 1e-8));
}

TEST(AdamW, NoGradientNoChange) {
    const auto x = tensor(kStart).requires_grad_(true);
    AdamW optimizer({{"x", x, 0.1, 0.5}});
    optimizer.step(1);
    EXPECT_TRUE(at::equal(x.detach(), tensor(kStart)));
    EXPECT_EQ(optimizer.gradient_norm(), 0);
}

TEST(AdamW, GradientNormIsOverAllParameters) {
    const auto x = at::ones({2}).requires_grad_(true), y = at::ones({1}, at::kDouble).requires_grad_(true);
    const AdamW optimizer({{"x", x, 0.1, 0}, {"y", y, 0.1, 0}});
    x.mutable_grad() = at::tensor({3.0F, 4.0F}), y.mutable_grad() = at::tensor({12.0}, at::kDouble);
    EXPECT_DOUBLE_EQ(optimizer.gradient_norm(), 13);
}

// Where operations are composed (ETHER_COMPOSED), such gradients are treated as one.
TEST(AdamW, GradientsMayLieOneBehindTheOther) {
    std::vector<std::vector<Tensor>> results;
    for (const bool together : {false, true}) {
        std::vector<OptimizedParameter> parameters;
        for (const auto& [name, rate, decay] :
             {std::tuple{"a", 0.1, 0.0}, {"b", 0.1, 0.0}, {"c", 0.1, 0.02}, {"d", 0.01, 0.02}})
            parameters.push_back(
                {name, test::normal({5, 2}, 1, at::kFloat).requires_grad_(true), rate, decay});
        AdamW optimizer(parameters);
        for (uint64_t step = 0; step < 4; ++step) {
            const auto all = test::normal({40}, 2 + step, at::kFloat);
            for (int64_t i = 0; i < 4; ++i) {
                const auto piece = all.narrow(0, 10 * i, 10).view({5, 2});
                // One that is absent parts its neighbours.
                const bool absent = step == 2 && i == 1;
                parameters[static_cast<size_t>(i)].value.mutable_grad() = absent     ? Tensor()
                                                                          : together ? piece
                                                                                     : piece.clone();
            }
            EXPECT_NEAR(optimizer.gradient_norm(),
                        (step == 2 ? at::cat({all.narrow(0, 0, 10), all.narrow(0, 20, 20)}) : all)
                            .norm()
                            .item<double>(),
                        1e-5);
            optimizer.step(1);
        }
        auto& values = results.emplace_back();
        for (const auto& parameter : parameters) values.push_back(parameter.value.detach());
    }
    for (size_t i = 0; i < 4; ++i) EXPECT_TRUE(at::equal(results[0][i], results[1][i])) << i;
}

TEST(AdamW, SavedAndLoadedItGoesOnToTheBit) {
    const auto x = tensor(kStart).to(at::kFloat).requires_grad_(true);
    AdamW first({{"x", x, 0.1, 0.01}});
    for (int i = 0; i < 3; ++i) step(first, x);
    std::vector<std::pair<std::string, Tensor>> saved;
    for (const auto& [name, value] : first.state()) saved.emplace_back(name, value.clone());
    const auto y = x.detach().clone().requires_grad_(true);
    AdamW second({{"x", y, 0.1, 0.01}});
    second.load_state(saved);
    for (int i = 0; i < 4; ++i) step(first, x), step(second, y);
    EXPECT_TRUE(at::equal(x.detach(), y.detach()));
    saved.pop_back();
    EXPECT_FAILS(format, "lacks \"x.exp_avg_sq\"", second.load_state(saved));
    saved.emplace_back("x.exp_avg_sq", at::zeros({4}));
    EXPECT_FAILS(format, "another shape", second.load_state(saved));
}

TEST(Schedule, IsAFunctionOfTheStep) {
    const auto at = [](const char* name, int64_t step) {
        return schedule_factor(schedule_named(name), step, 10, 4);
    };
    EXPECT_DOUBLE_EQ(at("constant", 0), 0.25);
    EXPECT_DOUBLE_EQ(at("constant", 3), 1);
    EXPECT_DOUBLE_EQ(at("constant", 9), 1);
    EXPECT_DOUBLE_EQ(at("linear", 0), 0.25);
    EXPECT_DOUBLE_EQ(at("linear", 3), 1);  // the warm-up reaches the whole rate, however long it is
    EXPECT_DOUBLE_EQ(at("linear", 4), 1);
    EXPECT_DOUBLE_EQ(at("linear", 7), 0.5);
    EXPECT_NEAR(at("linear", 9), 1.0 / 6, 1e-15);
    EXPECT_DOUBLE_EQ(at("cosine", 7), 0.5);
    EXPECT_NEAR(at("cosine", 10), 0, 1e-15);
    EXPECT_DOUBLE_EQ(schedule_factor(Schedule::linear, 9, 10, 10), 1);  // all of it warm-up
    EXPECT_DOUBLE_EQ(schedule_factor(Schedule::cosine, 0, 10, 0), 1);   // no warm-up
    EXPECT_DOUBLE_EQ(schedule_factor(Schedule::linear, 0, 0, 0), 1);
    EXPECT_FAILS(usage, "\"polynomial\" is not known, expected one of constant, linear, cosine",
                 schedule_named("polynomial"));
}

}  // namespace
}  // namespace ether::train
