// Choosing layers in PEFT's words, typed and in files, and modules that are trained whole.
#include "ether/methods/targets.h"

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
using Names = std::vector<std::string>;
using Options = std::map<std::string, std::string>;

Names chosen(const FixtureModel& fixture, const Targets& targets) {
    const auto model = fixture.load();
    Names names;
    for (const auto* site : select(targets, *model).sites) names.push_back(site->name());
    return names;
}

TEST(Targets, ListOfSuffixes) {
    EXPECT_EQ(
        chosen(test::kBert, {.modules = "query,attention.output.dense"}),
        (Names{"bert.encoder.layer.0.attention.self.query", "bert.encoder.layer.0.attention.output.dense",
               "bert.encoder.layer.1.attention.self.query", "bert.encoder.layer.1.attention.output.dense"}));
    EXPECT_EQ(chosen(test::kBert, {.modules = "classifier"}), Names{"classifier"});
    EXPECT_EQ(chosen(test::kLlamaTied, {.modules = "model.layers.1.mlp.up_proj"}),
              Names{"model.layers.1.mlp.up_proj"});
    EXPECT_EQ(chosen(test::kBert, {.modules = "dense"}).size(), 7U);  // three a block and the pooler
}

TEST(Targets, SuffixesAreWholeParts) {
    EXPECT_FAILS(usage, "no linear layer is named \"uery\"", chosen(test::kBert, {.modules = "uery"}));
}

TEST(Targets, RegularExpressionMatchesWholePaths) {
    EXPECT_EQ(chosen(test::kLlamaTied, {.modules = R"(.*\.0\.self_attn\.(q|v)_proj)"}),
              (Names{"model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj"}));
    EXPECT_FAILS(usage, "matches no linear layer", chosen(test::kLlamaTied, {.modules = "self_attn.*"}));
    EXPECT_FAILS(usage, "is not a regular expression", chosen(test::kLlamaTied, {.modules = "(q_proj"}));
}

TEST(Targets, AllLinearLeavesOutTheHeadOnly) {
    const auto bert = chosen(test::kBert, {});
    EXPECT_EQ(bert.size(), 13U);
    EXPECT_EQ(bert.back(), "bert.pooler.dense");
    EXPECT_EQ(chosen(test::kLlamaTied, {}).size(), 14U);
    EXPECT_EQ(chosen(test::kFixtureModels[2], {}).size(), 14U);  // an lm_head of its own
    EXPECT_EQ(chosen(test::kFixtureModels[4], {}).size(), 14U);  // score
}

TEST(Targets, ExcludeAndLayers) {
    EXPECT_EQ(chosen(test::kLlamaTied, {.exclude = "gate_proj,up_proj,down_proj", .layers = "1"}),
              (Names{"model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.k_proj",
                     "model.layers.1.self_attn.v_proj", "model.layers.1.self_attn.o_proj"}));
    EXPECT_EQ(chosen(test::kLlamaTied, {.modules = "q_proj", .layers = "0-1"}).size(), 2U);
    EXPECT_EQ(chosen(test::kBert, {.exclude = ".*layer.*"}), Names{"bert.pooler.dense"});
    EXPECT_FAILS(usage, "--layers", chosen(test::kLlamaTied, {.layers = "0-2"}));
    EXPECT_FAILS(usage, "--layers", chosen(test::kLlamaTied, {.layers = "last"}));
    EXPECT_FAILS(usage, "--targets: \"q_proj\" leaves no linear layer after --exclude in --layers 1;",
                 chosen(test::kLlamaTied, {.modules = "q_proj", .exclude = "q_proj", .layers = "1"}));
}

TEST(Targets, AnExclusionOfNothingIsATypoOrAnotherModels) {
    for (const char* exclude : {"vision_proj", ".*vision.*"}) {
        EXPECT_FAILS(usage, "--exclude: ", chosen(test::kLlamaTied, {.exclude = exclude}));
        const auto model = test::kLlamaTied.load();
        EXPECT_EQ(select({.exclude = exclude}, *model, kSavedTargets).sites.size(), 14U);
    }
}

// tests/oracle/compare_corners.py asks PEFT itself.
TEST(Targets, InAFileAsPeftReadsThem) {
    const auto model = test::kLlamaTied.load();
    auto saved = [&](const Targets& targets, bool headless = false) {
        auto words = kSavedTargets;
        words.headless = headless;
        Names names;
        for (const auto* site : select(targets, *model, words).sites) names.push_back(site->name());
        return names;
    };
    const std::string q = "model.layers.0.self_attn.q_proj", v1 = "model.layers.1.self_attn.v_proj";
    EXPECT_EQ(saved({.modules = "wte," + q + ",c_attn"}), Names{q});  // further names do no harm
    EXPECT_FAILS(usage, "leaves no linear layer", saved({.modules = "wte,c_attn"}));
    EXPECT_EQ(saved({.modules = "v_proj," + q, .layers = "1"}), (Names{q, v1}));
    EXPECT_EQ(saved({.exclude = "mlp,attention"}).size(), 14U);  // no modules of that name are linear
    EXPECT_FAILS(usage, "leaves no linear layer", saved({.modules = "query-value"}));
    const std::string expression = R"(layers\.\d\.self_attn\.(q|v)_proj)";
    EXPECT_EQ(saved({.modules = expression, .exclude = R"(layers\.(0\..*v|1\..*q)_proj)"}, true),
              (Names{q, v1}));
    EXPECT_FAILS(usage, "matches no linear layer", saved({.modules = expression}));
    EXPECT_EQ(saved({.modules = "q_proj", .layers = "0,7"}), Names{q});  // a block that is not there
    EXPECT_EQ(saved({.modules = R"(model\.layers\.[01]{,3}\.self_attn\.q_proj)"}).size(), 2U);
    auto read = [&](const nlohmann::json& config) { return saved(targets_from_config(config)); };
    const auto both = read({{"target_modules", {"q_proj", "no/such", "a,b"}}});
    EXPECT_EQ(both.size(), 2U);
    // A string is an expression, which has to match a whole path.
    EXPECT_EQ(read({{"target_modules", {"q_proj"}}, {"exclude_modules", "q_proj"}}), both);
    EXPECT_EQ(read({{"target_modules", {"q_proj"}}, {"exclude_modules", {"[a"}}}), both);
    EXPECT_EQ(read({{"target_modules", {"q_proj"}}, {"layers_to_transform", {0, -1}}}), Names{q});
    EXPECT_EQ(read({{"target_modules", "all-linear"}}).size(), 14U);
    EXPECT_FAILS(usage, "matches no linear layer", read({{"target_modules", "q_proj"}}));
    EXPECT_FAILS(usage, "matches no linear layer", read({{"target_modules", {"no/such"}}}));
    EXPECT_FAILS(adapter, "expected block numbers", read({{"layers_to_transform", {-1}}}));
}

TEST(Targets, WrittenSoThatPeftChoosesTheSame) {
    auto config = [](const Targets& targets) {
        return AdaptedModel(test::kLlamaTied.load(), AdapterConfig{.method = "lora", .targets = targets})
            .files("base")
            .config;
    };
    const nlohmann::json q0 = {"model.layers.0.self_attn.q_proj"};
    for (const auto& targets :
         {Targets{.modules = "q_proj,lm_head", .layers = "0"},
          Targets{.modules = q0[0].get<std::string>() + ",v_proj", .exclude = "v_proj", .layers = "0"},
          Targets{.modules = "q_proj,up_proj", .exclude = "mlp", .layers = "0"},
          Targets{.modules = R"(.*\.0\..*q_proj)"},
          Targets{.modules = "q_proj", .exclude = R"(.*\.1\..*)"}}) {
        const auto written = config(targets);
        EXPECT_EQ(written["target_modules"], q0);
        EXPECT_FALSE(written.contains("layers_to_transform"));
        EXPECT_FALSE(written.contains("exclude_modules"));
    }
    const auto plain = config({.modules = "q_proj,v_proj", .layers = "0"});
    EXPECT_EQ(plain["target_modules"], nlohmann::json({"q_proj", "v_proj"}));
    EXPECT_EQ(plain["layers_to_transform"], nlohmann::json({0}));
    // Some configurations of PEFT's know no exclude_modules, or no layers.
    const auto without = config({.modules = "q_proj,v_proj", .exclude = "v_proj", .layers = "0"});
    EXPECT_EQ(without["target_modules"], q0);
    EXPECT_FALSE(without.contains("exclude_modules"));
    for (const auto& [method, options] : {std::pair{"ia3", Options{}},
                                          {"shira", Options{{"rank", "1"}}},
                                          {"road", Options{{"group-size", "2"}}}}) {
        const AdapterConfig wanted{
            .method = method, .options = options, .targets = {.modules = "q_proj", .layers = "0"}};
        const auto named = AdaptedModel(test::kLlamaTied.load(), wanted).files("base").config;
        EXPECT_EQ(named["target_modules"], q0) << method;
        EXPECT_FALSE(named.contains("layers_to_transform") || named.contains("bias")) << method;
    }
}

TEST(Targets, RegularExpressionsEnd) {
    auto nested = [](size_t depth) { return std::string(depth, '(') + ".*" + std::string(depth, ')'); };
    EXPECT_EQ(chosen(test::kLlamaTied, {.modules = nested(499)}).size(), 15U);
    EXPECT_FAILS(usage, "has 1002 characters, more than 1000",
                 chosen(test::kLlamaTied, {.modules = nested(500)}));
    EXPECT_FAILS(usage, "matches no linear layer", chosen(test::kLlamaTied, {.modules = "([a-z._0-9]+)*!"}));
    EXPECT_EQ(chosen(test::kLlamaTied, {.modules = R"(model\.(?!.*mlp).*\.1\.(?:.*)(q|v)_proj)"}),
              (Names{"model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj"}));
}

TEST(Targets, NothingMatchedNamesWhatThereIs) {
    EXPECT_FAILS(usage,
                 "no linear layer is named \"q_proj\"; names here: classifier, dense, key, query, value",
                 chosen(test::kBert, {.modules = "q_proj"}));
}

TEST(Targets, ALayerTrainedWholeHasNoAdapter) {
    const AdaptedModel adapted(test::kBert.load(),
                               AdapterConfig{.method = "lora", .modules_to_save = {"pooler"}});
    EXPECT_TRUE(adapted.parameters().find("bert.pooler.dense.weight"));
    EXPECT_FALSE(adapted.parameters().find("bert.pooler.dense.lora_A.weight"));
    EXPECT_FAILS(usage, "trained whole already",
                 AdaptedModel(test::kBert.load(), AdapterConfig{.method = "lora",
                                                                .targets = {.modules = "pooler.dense"},
                                                                .modules_to_save = {"pooler"}}));
}

TEST(Targets, ATiedHeadTrainedWholeLeavesTheEmbeddings) {
    AdaptedModel adapted(
        test::kLlamaTied.load(),
        {.method = "lora", .targets = {.modules = "q_proj"}, .modules_to_save = {"lm_head"}});
    const auto* head = adapted.parameters().find("lm_head.weight");
    ASSERT_TRUE(head);
    head->value.detach().add_(1);
    const auto& tensors = adapted.model().tensors();
    EXPECT_FALSE(
        at::equal(*tensors.at("lm_head.weight").front(), *tensors.at("model.embed_tokens.weight").front()));
    AdaptedModel again(test::kLlamaTied.load(), adapted.files("base"));
    EXPECT_TRUE(at::equal(again.parameters().find("lm_head.weight")->value, head->value));
}

TEST(Targets, ModulesToSaveEndAModulesPathAsInPeft) {  // "norm" is input_layernorm, too
    const AdaptedModel adapted(test::kLlamaTied.load(),
                               AdapterConfig{.method = "lora", .modules_to_save = {"norm"}});
    EXPECT_TRUE(adapted.parameters().find("model.norm.weight"));
    EXPECT_TRUE(adapted.parameters().find("model.layers.0.input_layernorm.weight"));
}

TEST(Targets, TiedEmbeddingsTrainedWholeLeaveTheHead) {
    AdaptedModel adapted(
        test::kLlamaTied.load(),
        {.method = "lora", .targets = {.modules = "q_proj"}, .modules_to_save = {"embed_tokens"}});
    const auto before = test::kLlamaTied.load()->output_site().linear.weight;
    adapted.parameters().find("model.embed_tokens.weight")->value.detach().add_(1);
    EXPECT_TRUE(at::equal(adapted.model().output_site().linear.weight, before));
    EXPECT_TRUE(near(adapted.model().embeddings().table, before + 1, 0));
    const auto batch = test::kLlamaTied.batch();
    const auto logits = adapted.logits({.batch = batch});
    AdaptedModel again(test::kLlamaTied.load(), adapted.files("base"));
    EXPECT_TRUE(at::equal(again.logits({.batch = batch}), logits));
    EXPECT_TRUE(near(merged_of(adapted, test::kLlamaTied)->logits({.batch = batch}), logits, 3e-6));
}

}  // namespace
}  // namespace ether::methods
