// Trained embeddings of chosen tokens; PEFT's own files of them are among those of adapters_test.cpp.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "ether/methods/adapted_model.h"
#include "fixture_models.h"
#include "io/test_files.h"
#include "methods/merged.h"

namespace ether::methods {
namespace {

using test::FixtureModel;
using test::near;

constexpr const char* kLlamaTokens = "34,9,13,22";

AdapterConfig tokens(const char* indices) {
    return {.method = "trainable-tokens", .options = {{"token-indices", indices}}, .seed = 1};
}

void change(AdaptedModel& adapted) {
    for (const auto& parameter : adapted.parameters().trained()) parameter.value.detach().mul_(1.3).add_(0.1);
}

TEST(TrainableTokens, StartAsTheBase) {
    for (const auto& fixture : {test::kBert, test::kLlamaTied}) {
        AdaptedModel adapted(fixture.load(), tokens("3,30"));
        EXPECT_EQ(adapted.parameters().count(nn::ParameterGroup::adapter),
                  2 * adapted.model().shape().hidden_size);
        const auto batch = fixture.batch();
        EXPECT_TRUE(at::equal(adapted.logits({.batch = batch}), fixture.load()->logits({.batch = batch})));
    }
}

TEST(TrainableTokens, MergeAndKeepATiedHeadTied) {
    AdaptedModel adapted(test::kLlamaTied.load(), tokens(kLlamaTokens));
    change(adapted);
    const auto batch = test::kLlamaTied.batch();
    const auto logits = adapted.logits({.batch = batch});
    EXPECT_FALSE(near(logits, test::kLlamaTied.load()->logits({.batch = batch}), 1e-3));
    const auto merged = test::kLlamaTied.load();
    for (const auto& [name, tensor] : adapted.merged_tensors(at::kFloat)) {
        EXPECT_NE(name, "lm_head.weight");
        merged->replace(name, tensor);
    }
    EXPECT_TRUE(near(merged->logits({.batch = batch}), logits, 3e-6));
}

TEST(TrainableTokens, StandBesideOtherMethods) {
    auto config = tokens(kLlamaTokens);
    config.also = {{.method = "lora", .targets = {.modules = "q_proj,lm_head"}}};
    AdaptedModel adapted(test::kLlamaTied.load(), config);
    change(adapted);
    const auto batch = test::kLlamaTied.batch();
    const auto logits = adapted.logits({.batch = batch});
    AdaptedModel again(test::kLlamaTied.load(), adapted.files("base"));
    EXPECT_TRUE(at::equal(again.logits({.batch = batch}), logits));
    // The head is changed beyond the table, so it has a weight of its own.
    EXPECT_TRUE(near(merged_of(adapted, test::kLlamaTied)->logits({.batch = batch}), logits, 3e-6));
    config.also = {{.method = "trainable-tokens", .options = {{"token-indices", "3"}}}};
    EXPECT_FAILS(usage, "two of them train embeddings",
                 AdaptedModel(test::kLlamaTied.load(), config).logits({.batch = batch}));
}

TEST(TrainableTokens, FollowATrainedTable) {
    AdaptedModel adapted(test::kLlamaTied.load(), {.method = "trainable-tokens",
                                                   .options = {{"token-indices", kLlamaTokens}},
                                                   .also = {{.method = "full"}}});
    change(adapted);
    const auto batch = test::kLlamaTied.batch();
    const auto logits = adapted.logits({.batch = batch});
    const auto merged = test::kLlamaTied.load();
    for (const auto& [name, tensor] : adapted.merged_tensors(at::kFloat)) merged->replace(name, tensor);
    EXPECT_TRUE(near(merged->logits({.batch = batch}), logits, 1e-5));
    auto config = tokens("3");
    config.modules_to_save = {"word_embeddings"};
    EXPECT_FAILS(usage, "is trained whole already", AdaptedModel(test::kBert.load(), config));
}

TEST(TrainableTokens, WhatCannotBeIsSaid) {
    auto make = [](const char* indices) { AdaptedModel(test::kBert.load(), tokens(indices)); };
    EXPECT_FAILS(usage, "--token-indices: 5000 is no token of this model, whose embeddings have",
                 make("5000"));
    EXPECT_FAILS(usage, "--token-indices: 3 is there twice", make("3,4,3"));
    EXPECT_FAILS(usage, "name the tokens by --token-indices", make(""));
    auto files = io::read_adapter("tests/fixtures/peft/bert_tokens");
    files.config["target_modules"] = {"position_embeddings"};
    EXPECT_FAILS(adapter, "tokens of \"position_embeddings\" are trained; only this model's word embeddings",
                 AdaptedModel(test::kBert.load(), files));
    files.config["target_modules"] = {"a", "b"};
    EXPECT_FAILS(adapter, "expected one table of embeddings", AdaptedModel(test::kBert.load(), files));
    const std::vector<NamedAdapter> half = {{"a", io::read_adapter("tests/fixtures/peft/bert_tokens"), 0.5}};
    const auto batch = test::kBert.batch();
    EXPECT_FAILS(adapter, "a: replaces embeddings of the base, of which no part can be taken",
                 AdaptedModel(test::kBert.load(), half).logits({.batch = batch}));
}

}  // namespace
}  // namespace ether::methods
