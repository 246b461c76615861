// LoRA on the table of word embeddings, and a bias behind its B; PEFT's own are compared by tests/oracle.
#include <ATen/Functions.h>
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

constexpr const char* kA = "model.embed_tokens.lora_embedding_A";

AdapterConfig lora(const std::string& targets, std::map<std::string, std::string> options = {}) {
    return {.method = "lora", .options = std::move(options), .targets = {.modules = targets}, .seed = 1};
}

void change(AdaptedModel& adapted) {
    for (const auto& parameter : adapted.parameters().trained())
        parameter.value.detach().add_(at::arange(parameter.value.numel()).cos().view_as(parameter.value),
                                      0.1);
}

TEST(LoraOnEmbeddings, StartsAsTheBaseSavesAndMerges) {
    for (const auto& fixture : {test::kBert, test::kLlamaTied})
        for (const bool dora : {false, true}) {
            const bool bert = fixture.classifies();
            AdaptedModel adapted(fixture.load(), lora(bert ? "word_embeddings,query" : "embed_tokens,q_proj",
                                                      {{"dora", dora ? "true" : "false"}}));
            const auto batch = fixture.batch();
            EXPECT_TRUE(
                near(adapted.logits({.batch = batch}), fixture.load()->logits({.batch = batch}), 3e-6));
            change(adapted);
            const auto logits = adapted.logits({.batch = batch});
            EXPECT_FALSE(near(logits, fixture.load()->logits({.batch = batch}), 1e-2));
            AdaptedModel again(fixture.load(), adapted.files("base"));
            EXPECT_TRUE(at::equal(again.logits({.batch = batch}), logits));
            EXPECT_TRUE(near(merged_of(adapted, fixture)->logits({.batch = batch}), logits, 1e-5));
        }
}

// y = W[id] + s B A[:, id], and a tied head as it was.
TEST(LoraOnEmbeddings, AddToATokensRow) {
    AdaptedModel adapted(test::kLlamaTied.load(), lora("embed_tokens", {{"rank", "3"}, {"alpha", "6"}}));
    EXPECT_TRUE(adapted.sites().empty());
    change(adapted);
    const data::Batch nothing;
    adapted.bind({.batch = nothing});
    auto value = [&](const char* end) {
        return adapted.parameters().find(std::string("model.embed_tokens.lora_embedding_") + end)->value;
    };
    const auto& embeddings = adapted.model().embeddings();
    const auto ids = at::tensor({3, 0, 7, 3}, at::kLong);
    const auto expected = (embeddings.table + 2 * value("A").t().mm(value("B").t())).index_select(0, ids);
    EXPECT_TRUE(near(embeddings(ids), expected, 1e-6));
    EXPECT_TRUE(adapted.model().output_site().forms.empty());
    EXPECT_EQ(value("A").sizes(), (std::vector<int64_t>{3, embeddings.table.size(0)}));
}

TEST(LoraOnEmbeddings, GradientsAgree) {
    const auto fixture = test::kLlamaTied;
    for (const char* dora : {"false", "true"}) {
        AdaptedModel adapted(fixture.load(at::kDouble),
                             lora("embed_tokens", {{"rank", "2"}, {"dora", dora}}));
        change(adapted);
        const auto batch = fixture.batch({0});
        auto loss = [&] { return adapted.logits({.batch = batch}).to(at::kDouble).square().sum(); };
        loss().backward();
        const at::NoGradGuard no_grad;
        for (const auto& parameter : adapted.parameters().trained()) {
            if (parameter.name.ends_with("B") && std::string(dora) == "true") continue;  // a constant norm
            if (parameter.name.ends_with("A") && std::string(dora) == "true") continue;
            auto flat = at::Tensor(parameter.value).view({-1});
            const auto gradient = parameter.value.grad().flatten();
            const auto at_most = gradient.abs().argmax().item<int64_t>();
            const float step = 1e-4F, before = flat[at_most].item<float>();
            flat[at_most] = before + step;
            const double up = loss().item<double>();
            flat[at_most] = before - step;
            const double down = loss().item<double>();
            flat[at_most] = before;
            EXPECT_NEAR((up - down) / (2 * step), gradient[at_most].item<double>(),
                        1e-3 * std::abs(gradient[at_most].item<double>()))
                << parameter.name;
        }
    }
}

TEST(LoraOnEmbeddings, AddsUpWithOthersAndInPart) {
    const auto batch = test::kLlamaTied.batch();
    AdaptedModel first(test::kLlamaTied.load(), lora("embed_tokens,q_proj")),
        second(test::kLlamaTied.load(), lora("embed_tokens", {{"rank", "2"}}));
    change(first), change(second);
    AdaptedModel both(test::kLlamaTied.load(), std::vector<NamedAdapter>{{"a", first.files("base"), 0.5},
                                                                         {"b", second.files("base"), 1}});
    const auto logits = both.logits({.batch = batch});
    EXPECT_TRUE(near(merged_of(both, test::kLlamaTied)->logits({.batch = batch}), logits, 1e-5));
    both.activate({{"b", 1}});
    EXPECT_TRUE(near(both.logits({.batch = batch}), second.logits({.batch = batch}), 3e-6));
}

TEST(LoraOnEmbeddings, RanksByNameAndConfigurations) {
    AdaptedModel adapted(test::kLlamaTied.load(),
                         lora(R"(.*(embed_tokens|q_proj))", {{"rank-pattern", "embed_tokens=3"}}));
    EXPECT_EQ(adapted.parameters().find(kA)->value.size(0), 3);
    EXPECT_EQ(adapted.files("base").config["target_modules"],
              nlohmann::json({"model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj",
                              "model.embed_tokens"}));
    EXPECT_FALSE(AdaptedModel(test::kLlamaTied.load(), lora("all-linear")).parameters().find(kA));
}

TEST(LoraOnEmbeddings, WhatCannotBeIsSaid) {
    auto make = [](const std::string& targets, std::map<std::string, std::string> options) {
        AdaptedModel(test::kLlamaTied.load(), lora(targets, std::move(options)));
    };
    EXPECT_FAILS(usage, "--init-lora-weights pissa: is made for linear layers",
                 make("embed_tokens,q_proj", {{"init-lora-weights", "pissa"}}));
    EXPECT_FAILS(usage, "--lora-bias: \"model.embed_tokens\" is a table",
                 make("embed_tokens", {{"lora-bias", "true"}}));
    EXPECT_FAILS(usage, "no linear layer is named \"embed_tokens\"",
                 AdaptedModel(test::kLlamaTied.load(),
                              AdapterConfig{.method = "loha", .targets = {.modules = "embed_tokens"}}));
    const auto batch = test::kLlamaTied.batch();
    EXPECT_FAILS(usage, "the word embeddings are adapted, and some of them trained",
                 AdaptedModel(test::kLlamaTied.load(), lora("embed_tokens", {{"token-indices", "3"}}))
                     .logits({.batch = batch}));
}

TEST(LoraBias, IsScaledSavedMergedAndTakenInPart) {
    AdaptedModel adapted(test::kBert.load(), lora("query", {{"lora-bias", "true"}, {"alpha", "4"}}));
    change(adapted);
    const auto batch = test::kBert.batch();
    const auto logits = adapted.logits({.batch = batch});
    const auto files = adapted.files("base");
    EXPECT_EQ(files.config["lora_bias"], true);
    AdaptedModel again(test::kBert.load(), files);
    EXPECT_TRUE(at::equal(again.logits({.batch = batch}), logits));
    EXPECT_TRUE(near(merged_of(adapted, test::kBert)->logits({.batch = batch}), logits, 1e-5));
    AdaptedModel half(test::kBert.load(), std::vector<NamedAdapter>{{"a", files, 0.5}});
    half.bind({.batch = batch});
    const auto& site = *half.sites().front();
    const auto bias = half.parameters().find(site.name() + ".lora_B.bias")->value;
    EXPECT_TRUE(near(std::get<nn::Shift>(site.forms.output.front()).offset, bias * (0.5 * 4 / 8), 1e-7));
    EXPECT_FAILS(usage, "--lora-bias: goes neither with --dora",
                 AdaptedModel(test::kBert.load(), lora("query", {{"lora-bias", "true"}, {"dora", "true"}})));
}

}  // namespace
}  // namespace ether::methods
