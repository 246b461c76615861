// accumulate_gradients: however a step is cut, into micro-batches or slices for threads, its gradient is the
// same.
#include "ether/train/gradient.h"

#include <gtest/gtest.h>

#include <numeric>

#include "ether/core/parallel.h"
#include "ether/tasks/causal_lm.h"
#include "ether/tasks/classification.h"
#include "fixture_models.h"
#include "tensors.h"

namespace ether::train {
namespace {

using methods::AdaptedModel;

// `count` sequences of 3 to 12 tokens, with targets and labels.
std::vector<data::Sequence> sequences(int64_t count, int64_t vocabulary) {
    const auto random = Random(1);
    std::vector<data::Sequence> result(static_cast<size_t>(count));
    uint64_t drawn = 0;
    for (auto& sequence : result) {
        const uint64_t length = 3 + random.below(drawn++, 10);
        for (uint64_t i = 0; i < length; ++i)
            sequence.ids.push_back(
                static_cast<int64_t>(random.below(drawn++, static_cast<uint64_t>(vocabulary))));
        tasks::set_next_token_targets(sequence);
        sequence.label = static_cast<double>(random.below(drawn++, 3));
    }
    return result;
}

struct Step {
    StepSums sums;
    std::vector<at::Tensor> gradients;
};

Step step(AdaptedModel& model, const tasks::Task& task, const std::vector<data::Sequence>& data,
          int64_t batch, int threads, const MemoryMode& memory = {}) {
    set_num_threads(threads);
    data::BatchRows rows(data.size());
    std::iota(rows.begin(), rows.end(), 0);
    model.parameters().clear_grads();
    Step result{accumulate_gradients(model, task, data, rows, {batch, Random(5), memory}), {}};
    for (const auto& parameter : model.parameters().trained())
        result.gradients.push_back(parameter.value.grad().clone());
    return result;
}

void expect_same(const Step& a, const Step& b, double tolerance) {
    EXPECT_NEAR(a.sums.loss, b.sums.loss, tolerance * a.sums.loss);
    EXPECT_EQ(a.sums.tokens, b.sums.tokens);
    for (size_t i = 0; i < a.gradients.size(); ++i)
        EXPECT_TRUE(tolerance > 0 ? test::near(a.gradients[i], b.gradients[i], tolerance)
                                  : at::equal(a.gradients[i], b.gradients[i]));
}

class Gradient : public testing::TestWithParam<const char*> {
  protected:
    ~Gradient() override { set_num_threads(1); }
};

TEST_P(Gradient, DoesNotDependOnHowAStepIsCut) {
    const auto classification = tasks::Classification(data::LabelSet::from_names({"a", "b", "c"}, "f"));
    const auto language = tasks::CausalLm();
    for (const auto& [fixture, task] :
         {std::pair<test::FixtureModel, const tasks::Task*>{test::kBert, &classification},
          {test::kLlamaTied, &language}}) {
        AdaptedModel model(fixture.load(), methods::AdapterConfig{.method = GetParam(), .seed = 2});
        const auto data = sequences(40, 40);
        const auto whole = step(model, *task, data, 40, 1);
        for (const auto& [batch, threads] : {std::pair{40, 2}, {40, 3}, {7, 1}, {20, 2}}) {
            const auto cut = step(model, *task, data, batch, threads);
            expect_same(whole, cut, 1e-6);
            expect_same(cut, step(model, *task, data, batch, threads), 0);
        }
        for (const auto& [tokens, threads] : {std::pair{1, 1}, {30, 1}, {200, 3}}) {
            const MemoryMode pieces{.piece_tokens = tokens};
            const auto cut = step(model, *task, data, 40, threads, pieces);
            expect_same(whole, cut, 1e-6);
            expect_same(cut, step(model, *task, data, 40, threads, pieces), 0);
        }
    }
}

// Counts the tokens of each pass.
struct CountingTask : tasks::CausalLm {
    tasks::LossSum loss(AdaptedModel& model, const nn::Pass& pass) const override {
        passes.push_back(pass.batch.tokens());
        return CausalLm::loss(model, pass);
    }
    mutable std::vector<int64_t> passes;
};

TEST(Gradient, PiecesAreNoLongerThanTheirTokens) {
    AdaptedModel model(test::kLlamaTied.load(), methods::AdapterConfig{.method = "ether", .seed = 2});
    const auto data = sequences(40, 40);
    CountingTask task;
    step(model, task, data, 40, 1);
    EXPECT_EQ(task.passes.size(), 1);
    task.passes.clear();
    const auto sums = step(model, task, data, 40, 1, {.piece_tokens = 30}).sums;
    EXPECT_GE(std::ssize(task.passes), sums.tokens / 30);
    EXPECT_LE(*std::max_element(task.passes.begin(), task.passes.end()), 30);
    EXPECT_EQ(std::accumulate(task.passes.begin(), task.passes.end(), int64_t{0}), sums.tokens);
    task.passes.clear();
    step(model, task, data, 40, 1, {.piece_tokens = 1});  // a sequence is not cut
    EXPECT_EQ(task.passes.size(), data.size());
    set_num_threads(1);
}

// Blocks that are run again in backward give the same bits, dropouts and weights trained whole included.
TEST_P(Gradient, IsTheSameWithCheckpointedActivations) {
    const auto classification = tasks::Classification(data::LabelSet::from_names({"a", "b", "c"}, "f"));
    const auto language = tasks::CausalLm();
    const std::string method = GetParam();
    std::map<std::string, std::string> options;
    if (method.starts_with("ether")) options = {{"block-dropout", "0.3"}, {"side", "both"}};
    if (method == "lora") options = {{"dropout", "0.3"}};
    for (const auto& [fixture, task] :
         {std::pair<test::FixtureModel, const tasks::Task*>{test::kBert, &classification},
          {test::kLlamaTied, &language}}) {
        AdaptedModel model(fixture.load(),
                           methods::AdapterConfig{.method = method, .options = options, .seed = 2});
        const at::NoGradGuard no_grad;
        for (const auto& parameter : model.parameters().trained())  // LoRA's B starts at zero
            parameter.value.mul_(1.1).add_(0.03);
        const at::AutoGradMode grad(true);
        const auto data = sequences(40, 40);
        for (const auto& [batch, threads] : {std::pair{40, 1}, {7, 1}, {40, 2}}) {
            const auto plain = step(model, *task, data, batch, threads);
            for (int64_t blocks = 1; blocks <= model.model().shape().layers; ++blocks)
                expect_same(plain, step(model, *task, data, batch, threads, {.checkpointed_blocks = blocks}),
                            0);
        }
    }
}

INSTANTIATE_TEST_SUITE_P(Methods, Gradient,
                         testing::Values("ether", "ether+", "lora", "adalora", "vera", "hira", "full"),
                         [](const auto& info) {
                             return std::string(info.param) == "ether+" ? "etherplus" : info.param;
                         });

// The first passes of a model run side by side, too.
TEST(Gradient, SlicesShareNoState) {
    const auto classification = tasks::Classification(data::LabelSet::from_names({"a", "b", "c"}, "f"));
    const auto language = tasks::CausalLm();
    const auto data = sequences(40, 40);
    for (const auto& fixture : test::kFixtureModels) {
        const tasks::Task& task =
            fixture.classifies() ? static_cast<const tasks::Task&>(classification) : language;
        AdaptedModel one(fixture.load(), methods::AdapterConfig{.method = "ether", .seed = 2});
        const auto expected = step(one, task, data, 40, 1);
        for (int repeat = 0; repeat < 10; ++repeat) {
            AdaptedModel model(fixture.load(), methods::AdapterConfig{.method = "ether", .seed = 2});
            expect_same(expected, step(model, task, data, 40, 3), 1e-6);
        }
    }
    set_num_threads(1);
}

TEST(Gradient, ALossThatIsNotFiniteIsReturned) {
    AdaptedModel model(test::kLlamaTied.load(), methods::AdapterConfig{.method = "lora"});
    model.parameters().all().front().value.mutable_data_ptr<float>()[0] = NAN;
    EXPECT_TRUE(std::isnan(step(model, tasks::CausalLm(), sequences(4, 40), 4, 1).sums.loss));
}

}  // namespace
}  // namespace ether::train
