// PassGraphs: the same bits with recorded passes as without. The CPU, which has no graphs, repeats the work.
#include "ether/train/pass_graphs.h"

#include <gtest/gtest.h>

#include <numeric>

#include "ether/core/parallel.h"
#include "ether/tasks/causal_lm.h"
#include "ether/train/gradient.h"
#include "fixture_models.h"
#include "tensors.h"

namespace ether::train {
namespace {

using methods::AdaptedModel;

std::vector<data::Sequence> sequences(const std::vector<int64_t>& lengths, uint64_t seed) {
    const auto random = Random(seed);
    std::vector<data::Sequence> result;
    uint64_t drawn = 0;
    for (const int64_t length : lengths) {
        auto& sequence = result.emplace_back();
        for (int64_t i = 0; i < length; ++i)
            sequence.ids.push_back(static_cast<int64_t>(random.below(drawn++, 40)));
        tasks::set_next_token_targets(sequence);
    }
    return result;
}

class PassGraphsTest : public testing::Test {
  protected:
    PassGraphsTest() {
        set_num_threads(1);
        ops::record_cpu_work(true);
    }
    ~PassGraphsTest() override { ops::record_cpu_work(false); }

    // Losses and gradients of steps over sequences of these lengths, two in a micro-batch.
    static std::vector<at::Tensor> steps(AdaptedModel& model,
                                         const std::vector<std::vector<int64_t>>& lengths,
                                         PassGraphs* graphs) {
        static const tasks::CausalLm task;  // replays come back to it
        std::vector<at::Tensor> all;
        for (size_t i = 0; i < lengths.size(); ++i) {
            const auto data = sequences(lengths[i], i);
            data::BatchRows rows(data.size());
            std::iota(rows.begin(), rows.end(), 0);
            const auto sums = accumulate_gradients(
                model, task, data, rows, {.batch = 2, .random = Random(5).stream(i), .graphs = graphs});
            all.push_back(at::scalar_tensor(sums.loss, at::kDouble));
            for (const auto& parameter : model.parameters().trained()) {
                const auto& grad = parameter.value.grad();
                all.push_back(grad.defined() ? grad.clone() : at::Tensor());
            }
            model.parameters().clear_grads();
        }
        return all;
    }

    static void expect_same_bits(AdaptedModel& model, const std::vector<std::vector<int64_t>>& lengths,
                                 int64_t recorded) {
        const auto graphs = PassGraphs::of(model);
        ASSERT_TRUE(graphs);
        const auto expected = steps(model, lengths, nullptr), found = steps(model, lengths, graphs.get());
        ASSERT_EQ(expected.size(), found.size());
        for (size_t i = 0; i < expected.size(); ++i) {
            ASSERT_EQ(expected[i].defined(), found[i].defined()) << i;
            if (!expected[i].defined()) continue;
            EXPECT_TRUE(at::equal(expected[i], found[i])) << i;
        }
        EXPECT_EQ(graphs->recorded(), recorded);
    }
};

AdaptedModel llama(const std::string& method, const std::map<std::string, std::string>& options = {}) {
    return {test::kLlamaTied.load(), methods::AdapterConfig{.method = method, .options = options, .seed = 2}};
}

TEST_F(PassGraphsTest, EqualShapesAreRecorded) {
    for (const char* method : {"ether", "ether+", "lora", "adalora", "vera"}) {
        auto model = llama(method);
        expect_same_bits(model, std::vector<std::vector<int64_t>>(5, {6, 6}), 1);
    }
}

TEST_F(PassGraphsTest, MicroBatchesAddUp) {
    auto model = llama("ether+");
    expect_same_bits(model, std::vector<std::vector<int64_t>>(3, {6, 6, 6, 6, 6, 6}), 1);
}

// The shape of a micro-batch, and of the step that it belongs to.
TEST_F(PassGraphsTest, ShapesMayDiffer) {
    auto model = llama("ether+");
    expect_same_bits(model, {{6, 6}, {6, 6}, {6, 6}, {3, 4, 6, 6}, {6, 6, 5, 5, 6, 6}, {6, 6}, {4, 3, 6, 6}},
                     1);
    // As long in all, and otherwise not.
    auto other = llama("ether");
    expect_same_bits(other, {{6, 6}, {6, 6}, {7, 5}, {7, 5}, {8, 4}, {8, 4}, {6, 6}}, 1);
}

TEST_F(PassGraphsTest, WhatIsDrawnAnewIsNotRecorded) {
    const std::vector<std::vector<int64_t>> lengths(5, {6, 6});
    for (auto [method, options] :
         {std::pair<std::string, std::map<std::string, std::string>>{"ether", {{"block-dropout", "0.5"}}},
          {"ether", {{"dropout", "0.5"}}},
          {"boft", {{"block-dropout", "0.5"}}},
          {"lora", {{"dropout", "0.5"}}}}) {
        auto model = llama(method, options);
        expect_same_bits(model, lengths, 0);
    }
}

TEST_F(PassGraphsTest, MethodsThatNeedMoreThanAPassAreNotRecorded) {
    for (const char* method : {"full"}) {
        auto model = llama(method);
        const auto graphs = PassGraphs::of(model);
        steps(model, std::vector<std::vector<int64_t>>(4, {6, 6}), graphs.get());
        EXPECT_EQ(graphs->recorded(), 0) << method;
    }
}

// Values may change in any way between steps; what a pass reads of them is read again.
TEST_F(PassGraphsTest, ParametersAreReadAnew) {
    auto model = llama("ether+");
    const auto graphs = PassGraphs::of(model);
    const std::vector<std::vector<int64_t>> lengths(3, {6, 6});
    steps(model, lengths, graphs.get());
    const at::NoGradGuard no_grad;
    for (const auto& parameter : model.parameters().trained()) parameter.value.mul_(1.5).add_(0.1);
    const at::AutoGradMode grad(true);
    const auto expected = steps(model, lengths, nullptr), found = steps(model, lengths, graphs.get());
    for (size_t i = 0; i < expected.size(); ++i) EXPECT_TRUE(at::equal(expected[i], found[i])) << i;
}

TEST(PassGraphs, TheCpuHasNone) {
    auto model = llama("ether");
    EXPECT_FALSE(PassGraphs::of(model));
}

}  // namespace
}  // namespace ether::train
