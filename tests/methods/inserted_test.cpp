// Modules that methods insert into blocks: gradients on whole models, starting values, files, what they
// refuse.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "ether/methods/adapted_model.h"
#include "fixture_models.h"
#include "gradcheck.h"
#include "io/test_files.h"

namespace ether::methods {
namespace {

using at::Tensor;
using test::near;

struct Inserted {
    const char* name;
    std::string method;
    std::map<std::string, std::string> options;
    int64_t trained;  // on two blocks of width 32, keys and values of a Llama 16 wide
    bool starts_as_base;
    bool of_language_models = true;
};

void PrintTo(const Inserted& inserted, std::ostream* out) { *out << inserted.name; }

class Insertion : public testing::TestWithParam<Inserted> {
  protected:
    const Inserted& kind = GetParam();
    const test::FixtureModel& llama = kind.of_language_models ? test::kLlamaTied : test::kFixtureModels[4];
    AdaptedModel on(const test::FixtureModel& fixture, at::ScalarType dtype = at::kFloat) const {
        return {fixture.load(dtype),
                AdapterConfig{.method = kind.method, .options = kind.options, .seed = 3}};
    }
    static std::vector<nn::Parameter> own(const AdaptedModel& adapted) {
        auto parameters = adapted.parameters().trained();
        std::erase_if(parameters,
                      [](const auto& parameter) { return parameter.group != nn::ParameterGroup::adapter; });
        return parameters;
    }
    static void randomise(const AdaptedModel& adapted, at::ScalarType dtype) {
        uint64_t seed = 5;
        for (const auto& parameter : own(adapted))
            Tensor(parameter.value).set_data(0.3 * test::normal(parameter.value.sizes(), seed++, dtype));
    }
};

TEST_P(Insertion, Gradcheck) {
    for (const auto* fixture : {&test::kBert, &llama}) {
        auto adapted = on(*fixture, at::kDouble);
        randomise(adapted, at::kDouble);
        const auto batch = fixture->batch();
        test::NamedInputs inputs;
        for (const auto& parameter : own(adapted)) inputs.emplace_back(parameter.name, parameter.value);
        EXPECT_TRUE(
            test::gradcheck([&] { return fixture->loss(adapted.logits({.batch = batch}), batch); }, inputs));
    }
}

TEST_P(Insertion, CountsAndStarts) {
    auto adapted = on(llama);
    EXPECT_EQ(adapted.parameters().count(), kind.trained);
    const auto batch = llama.batch();
    const auto base = llama.load()->logits({.batch = batch});
    const double moved = test::distance(adapted.logits({.batch = batch}), base);
    if (kind.starts_as_base)
        EXPECT_EQ(moved, 0);
    else
        EXPECT_GT(moved, 1e-6);
}

TEST_P(Insertion, FilesHoldWhatActs) {
    for (const auto dtype : {at::kFloat, at::kBFloat16}) {
        auto adapted = on(llama, dtype);
        randomise(adapted, at::kFloat);
        AdaptedModel loaded(llama.load(dtype), adapted.files("base"));
        const auto batch = llama.batch();
        EXPECT_TRUE(at::equal(loaded.logits({.batch = batch}), adapted.logits({.batch = batch})));
        EXPECT_FAILS(adapter, "cannot be merged", loaded.merged_tensors(at::kFloat));
    }
}

TEST_P(Insertion, SharesAModelWithOthers) {
    auto adapted = on(llama);
    randomise(adapted, at::kFloat);
    const auto files = adapted.files("base");
    const auto batch = llama.batch();
    const auto base = llama.load()->logits({.batch = batch});
    AdaptedModel lora(llama.load(), AdapterConfig{.method = "lora"});
    AdaptedModel both(llama.load(),
                      std::vector<NamedAdapter>{{"inserted", files}, {"lora", lora.files("base")}});
    EXPECT_TRUE(near(both.logits({.batch = batch}), adapted.logits({.batch = batch}), 1e-6));
    both.activate({{"lora", 1}});
    EXPECT_TRUE(near(both.logits({.batch = batch}), base, 1e-6));
    both.activate({{"inserted", 0.5}});
    EXPECT_FAILS(adapter, "of which no part can be taken", both.logits({.batch = batch}));
    AdaptedModel twice(llama.load(), std::vector<NamedAdapter>{{"a", files}, {"b", files}});
    EXPECT_FAILS(usage, "two of them insert modules at the same place", twice.logits({.batch = batch}));
}

INSTANTIATE_TEST_SUITE_P(
    Kinds, Insertion,
    testing::Values(
        Inserted{"pfeiffer", "bottleneck", {{"bottleneck-size", "3"}}, 2 * (2 * 32 * 3 + 32 + 3), true},
        Inserted{"houlsby",
                 "bottleneck",
                 {{"bottleneck-size", "3"}, {"placement", "houlsby"}, {"activation", "gelu"}},
                 4 * (2 * 32 * 3 + 32 + 3),
                 true},
        Inserted{
            "parallel",
            "bottleneck",
            {{"bottleneck-size", "2"}, {"placement", "parallel"}, {"activation", "silu"}, {"scale", "4"}},
            2 * (2 * 32 * 2 + 32 + 2),
            true},
        Inserted{"prefix", "prefix", {{"prefix-length", "3"}}, 2 * 2 * 3 * 16, false},
        Inserted{"projected",
                 "prefix",
                 {{"prefix-length", "3"}, {"projection", "4"}},
                 3 * 32 + 4 * 33 + 2 * 2 * 16 * 5,
                 false},
        Inserted{"unipelt",
                 "unipelt",
                 {{"rank", "2"}, {"prefix-length", "3"}, {"projection", "0"}, {"bottleneck-size", "3"}},
                 2 * (2 * (32 + 32) + 2 * (32 + 16) + 4 * 33 + 2 * 32 * 3 + 32 + 3) + 2 * 2 * 3 * 16,
                 false,
                 false},
        Inserted{"unipelt_houlsby",
                 "unipelt",
                 {{"modules", "adapter"}, {"placement", "houlsby"}, {"bottleneck-size", "3"}},
                 4 * (2 * 32 * 3 + 32 + 3 + 33),
                 false,
                 false},
        Inserted{"unipelt_central",
                 "unipelt",
                 {{"modules", "lora,prefix"},
                  {"gates", "central"},
                  {"rank", "2"},
                  {"prefix-length", "3"},
                  {"projection", "2"}},
                 2 * (2 * (32 + 32) + 2 * (32 + 16) + 2 * 33) + 3 * 32 + 2 * 33 + 2 * 2 * 16 * 3,
                 false,
                 false}),
    [](const auto& info) { return std::string(info.param.name); });

AdaptedModel with_prefix_of(int64_t length, const test::FixtureModel& fixture) {
    return {fixture.load(),
            AdapterConfig{.method = "prefix", .options = {{"prefix-length", std::to_string(length)}}}};
}

TEST(Prefix, TakesTheFirstPositions) {
    for (const auto* fixture : {&test::kBert, &test::kLlamaTied}) {
        auto adapted = with_prefix_of(3, *fixture);
        const auto vectors = adapted.parameters().find("prompt_embeddings")->value.view({3, 2, 2, -1});
        EXPECT_EQ(adapted.model().shape().max_positions, fixture->load()->shape().max_positions - 3);
        // The same texts three positions further, behind vectors that take none.
        const auto model = fixture->load();
        for (size_t layer = 0; layer < model->points().size(); ++layer)
            model->points()[layer].extra_kv =
                [own = vectors.select(1, static_cast<int64_t>(layer)).transpose(0, 1)](const Tensor&,
                                                                                       const nn::Pass&) {
                    return nn::ExtraKeyValues{own[0], own[1]};
                };
        auto moved = fixture->batch();
        moved.positions = moved.positions + 3;
        moved.max_length += 3;
        const auto batch = fixture->batch();
        EXPECT_TRUE(near(adapted.logits({.batch = batch}), model->logits({.batch = moved}), 1e-6));
    }
    EXPECT_FAILS(usage, "vectors before a text leave it none of the model's",
                 with_prefix_of(4096, test::kBert));
}

TEST(Prefix, FilesAreThoseOfPeft) {
    const auto adapted = with_prefix_of(3, test::kLlamaTied);
    auto files = adapted.files("base");
    EXPECT_EQ(files.config["peft_type"], "PREFIX_TUNING");
    EXPECT_EQ(files.config["num_virtual_tokens"], 3);
    EXPECT_EQ(files.config["token_dim"], 16);
    ASSERT_EQ(files.tensors.size(), 1);
    auto& [name, tensor] = files.tensors.front();
    EXPECT_EQ(name, "prompt_embeddings");
    tensor = tensor.narrow(1, 0, 48);
    EXPECT_FAILS(adapter,
                 "\"prompt_embeddings\" has shape (3, 48), but this model and configuration need (3, 64)",
                 AdaptedModel(test::kLlamaTied.load(), files));
    // A head stands beside the prefix, not inside of a wrapper.
    AdaptedModel classifier(test::kBert.load(),
                            AdapterConfig{.method = "prefix", .modules_to_save = {"classifier"}});
    bool found = false;
    for (const auto& [key, value] : classifier.files("base").tensors)
        found |= key == "base_model.classifier.weight";
    EXPECT_TRUE(found);
    EXPECT_NO_THROW(AdaptedModel(test::kBert.load(), classifier.files("base")));
}

}  // namespace
}  // namespace ether::methods
