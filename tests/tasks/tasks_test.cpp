// Tasks: what they make of texts, and their scores against the definitions written out.
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "ether/core/error.h"
#include "ether/core/parallel.h"
#include "ether/tasks/causal_lm.h"
#include "ether/tasks/classification.h"
#include "fixture_models.h"

namespace ether::tasks {
namespace {

using data::Example;
using methods::AdaptedModel;

const text::Tokenizer& tokenizer() {  // "w7" is token 7; [CLS] 1 in front, [SEP] 2 behind
    static const auto loaded = text::Tokenizer::load("tests/fixtures/models/bert");
    return loaded;
}

Example example(std::string text, data::Label label = {}, std::optional<std::string> pair = {}) {
    return {.text = std::move(text), .pair = std::move(pair), .label = std::move(label), .line = 3};
}

const Classification kAbc(data::LabelSet::from_names({"a", "b", "c"}, "f"));

TEST(SequenceTask, EncodesTextsPairsAndLabels) {
    const auto single = kAbc.encode({example("w7 w8", "b")}, "x.jsonl", tokenizer(), {});
    EXPECT_EQ(single[0].ids, (std::vector<int64_t>{1, 7, 8, 2}));
    EXPECT_EQ(single[0].label, 1);
    const auto pair = kAbc.encode({example("w7", "c", "w9")}, "x.jsonl", tokenizer(), {});
    EXPECT_EQ(pair[0].ids, (std::vector<int64_t>{1, 7, 2, 9, 2}));
    EXPECT_EQ(pair[0].type_ids, (std::vector<int64_t>{0, 0, 0, 1, 1}));
    // An empty second text is one, as for transformers.
    const auto mixed = kAbc.encode({example("w7", "c", "w9"), example("w7", "c", "")}, "x", tokenizer(), {});
    EXPECT_EQ(mixed[1].ids, (std::vector<int64_t>{1, 7, 2, 2}));
    EXPECT_EQ(mixed[1].type_ids, (std::vector<int64_t>{0, 0, 0, 1}));
    EXPECT_EQ(
        kAbc.encode({example("w7 w8 w9", "a")}, "x.jsonl", tokenizer(), {.max_length = 4})[0].ids.size(), 4U);
}

TEST(SequenceTask, NamesFileAndLineOfWhatItCannotUse) {
    try {
        kAbc.encode({example("w7", "d")}, "x.jsonl", tokenizer(), {});
        ADD_FAILURE();
    } catch (const Error& error) {
        EXPECT_EQ(error.kind(), ErrorKind::data);
        EXPECT_NE(std::string(error.what()).find("x.jsonl:3"), std::string::npos) << error.what();
    }
}

TEST(CausalLm, TargetsAreTheNextTokensAndLongTextsAreSplit) {
    const CausalLm task;
    const auto sequences = task.encode({example("w7 w8 w9 w10")}, "x.txt", tokenizer(), {.max_length = 4});
    ASSERT_EQ(sequences.size(), 2U);  // [CLS] w7 w8 w9 | w10 [SEP]
    EXPECT_EQ(sequences[0].ids, (std::vector<int64_t>{1, 7, 8, 9}));
    EXPECT_EQ(sequences[0].targets, (std::vector<int64_t>{7, 8, 9, data::kIgnoredTarget}));
    EXPECT_EQ(sequences[1].ids, (std::vector<int64_t>{10, 2}));
}

// Sequences of tokens and labels that no model knows, so that all classes are confused.
std::vector<data::Sequence> sequences(bool integers) {
    std::vector<data::Sequence> result(23);
    const Random random(3);
    uint64_t drawn = 0;
    for (auto& sequence : result) {
        for (uint64_t i = 0; i < 2 + drawn % 9; ++i)
            sequence.ids.push_back(4 + static_cast<int64_t>(random.below(drawn + i, 40)));
        drawn += 20;
        sequence.label = integers ? static_cast<double>(random.below(drawn, 3)) : random.normal(drawn);
    }
    return result;
}

TEST(Classification, ScoresAreTheirDefinitions) {
    AdaptedModel model(test::kBert.load(), methods::AdapterConfig{.method = "ether+", .seed = 1});
    const auto data = sequences(true);
    double right = 0, loss = 0;
    std::array<double, 3> hits{}, guessed{}, real{};
    for (const auto& sequence : data) {
        const std::vector<int64_t> row = {0};
        const auto logits =
            model.logits({.batch = data::collate({&sequence, 1}, row, data::LabelType::index)})[0];
        const auto label = static_cast<size_t>(sequence.label),
                   guess = static_cast<size_t>(logits.argmax().item<int64_t>());
        loss -= logits.log_softmax(0)[static_cast<int64_t>(label)].item<double>();
        right += guess == label;
        hits[label] += guess == label, ++guessed[guess], ++real[label];
    }
    double f1 = 0, classes = 0;
    for (size_t c = 0; c < 3; ++c)
        if (guessed[c] + real[c] > 0) f1 += 2 * hits[c] / (guessed[c] + real[c]), ++classes;
    for (const int threads : {1, 2}) {
        set_num_threads(threads);
        const auto scores = kAbc.evaluate(model, data, 4);
        EXPECT_DOUBLE_EQ(scores.at("accuracy"), right / 23);
        EXPECT_DOUBLE_EQ(scores.at("macro_f1"), f1 / classes);
        EXPECT_NEAR(scores.at("loss"), loss / 23, 1e-5);
    }
    set_num_threads(1);
}

TEST(Regression, ScoresAreTheirDefinitions) {
    const Regression task;
    AdaptedModel model(models::load_model(io::Checkpoint::open(test::kBertBare.path()),
                                          {.head = task.head(), .classes = 1, .new_head = true, .seed = 5}),
                       {.method = "head"});
    const auto data = sequences(false);
    std::vector<double> x, y;
    for (const auto& sequence : data) {
        const std::vector<int64_t> row = {0};
        x.push_back(model.logits({.batch = data::collate({&sequence, 1}, row, data::LabelType::real)})
                        .item<double>());
        y.push_back(sequence.label);
    }
    const auto a = at::tensor(x, at::kDouble), b = at::tensor(y, at::kDouble);
    const auto da = a - a.mean(), db = b - b.mean();
    const auto scores = task.evaluate(model, data, 5);
    EXPECT_NEAR(scores.at("loss"), (a - b).square().mean().item<double>(), 1e-5);
    EXPECT_NEAR(scores.at("pearson"),
                ((da * db).sum() / (da.square().sum() * db.square().sum()).sqrt()).item<double>(), 1e-4);
}

TEST(Task, DescriptionsReadBack) {
    const auto again = [](const Task& task) {
        return task_from(io::JsonObject(task.describe(), "ether.json"));
    };
    EXPECT_EQ(dynamic_cast<const Classification&>(*again(kAbc)).labels().names(), kAbc.labels().names());
    EXPECT_STREQ(again(Regression())->name(), "regression");
    EXPECT_STREQ(again(CausalLm())->name(), "causal-lm");
}

}  // namespace
}  // namespace ether::tasks
