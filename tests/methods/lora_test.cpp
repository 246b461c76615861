// LoRA's starts, and its numbers for chosen layers.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "ether/methods/adapted_model.h"
#include "ether/methods/lora_starts.h"
#include "fixture_models.h"
#include "io/test_files.h"

namespace ether::methods {
namespace {

using at::Tensor;
using test::near;

AdapterConfig lora(std::map<std::string, std::string> options) {
    return {.method = "lora", .options = std::move(options), .seed = 1};
}

class LoraStarts : public testing::TestWithParam<const char*> {};

TEST_P(LoraStarts, BeginAsTheBaseAndAreSavedAsAPlainLora) {
    const auto batch = test::kBert.batch();
    const auto base = test::kBert.load()->logits({.batch = batch});
    for (const char* rslora : {"false", "true"}) {
        AdaptedModel adapted(test::kBert.load(), lora({{"init-lora-weights", GetParam()},
                                                       {"rank", "4"},
                                                       {"alpha", "6"},
                                                       {"rslora", rslora},
                                                       {"rank-pattern", "query=2"},
                                                       {"alpha-pattern", "key=3"}}));
        EXPECT_TRUE(near(adapted.logits({.batch = batch}), base, 1e-5));
        for (const auto& parameter : adapted.parameters().trained())
            if (parameter.group == nn::ParameterGroup::adapter) parameter.value.detach().mul_(1.5).add_(0.05);
        const auto trained = adapted.logits({.batch = batch});
        EXPECT_FALSE(near(trained, base, 1e-3));
        const auto files = adapted.files("base");
        const auto& start = files.config["init_lora_weights"];
        EXPECT_TRUE(start == true || start == "gaussian" || start == "orthogonal") << start;
        EXPECT_EQ(files.config["r"], moves_base(GetParam()) ? 8 : 4);
        AdaptedModel again(test::kBert.load(), files);
        EXPECT_TRUE(near(again.logits({.batch = batch}), trained, 1e-5));
    }
}

INSTANTIATE_TEST_SUITE_P(All, LoraStarts,
                         testing::Values("default", "gaussian", "orthogonal", "pissa", "pissa_niter_3",
                                         "olora"));

TEST(LoraStart, PissaTakesTheLargestSingularValues) {
    const auto model = test::kBert.load();
    const auto& site = model->sites().front();
    const auto weight = site.linear.weight.to(at::kDouble);
    const auto values = std::get<1>(at::linalg_svd(weight, false));
    for (const char* name : {"pissa", "pissa_niter_60"}) {
        const auto [a, b] = lora_start(name, site, 3, 0.7, Random(1));
        const auto rest = weight - 0.7 * b.to(at::kDouble).mm(a.to(at::kDouble));
        const double least = values.slice(0, 3).norm().item<double>();  // Eckart and Young
        EXPECT_NEAR(rest.norm().item<double>(), least, 1e-4 * least) << name;
        EXPECT_TRUE(near(0.7 * a.norm(2, {1}).square(), values.slice(0, 0, 3), 1e-3)) << name;
    }
}

TEST(LoraStart, OloraTakesAnOrthonormalBasis) {
    const auto model = test::kBert.load();
    const auto [a, b] = lora_start("olora", model->sites().front(), 3, 0.7, Random(1));
    EXPECT_TRUE(near(b.t().mm(b), at::eye(3), 1e-5));
    EXPECT_TRUE(near(a.tril(-1), at::zeros_like(a), 1e-6));
}

TEST(LoraStart, OrthogonalFactorsCancel) {
    const auto model = test::kBert.load();
    const auto [a, b] = lora_start("orthogonal", model->sites().front(), 4, 0.7, Random(1));
    EXPECT_GT(a.abs().max().item<double>(), 0.01);
    EXPECT_GT(b.abs().max().item<double>(), 0.01);
    EXPECT_TRUE(near(b.mm(a), at::zeros({b.size(0), a.size(1)}), 1e-6));
}

TEST(LoraStart, WhatCannotBeIsSaid) {
    auto make = [](std::map<std::string, std::string> options) {
        AdaptedModel(test::kBert.load(), lora(std::move(options)));
    };
    EXPECT_FAILS(
        usage,
        "\"pisa\" is not known, expected one of default, gaussian, orthogonal, eva, pissa, olora, mica, "
        "pissa_niter_4; did you mean \"pissa\"?",
        make({{"init-lora-weights", "pisa"}}));
    for (const char* rounds : {"pissa_niter_", "pissa_niter_0", "pissa_niter_-1", "pissa_niter_4x"})
        EXPECT_FAILS(usage, "is not known", make({{"init-lora-weights", rounds}}));
    EXPECT_FAILS(usage, "needs an even rank, got 3",
                 make({{"init-lora-weights", "orthogonal"}, {"rank", "3"}}));
    EXPECT_FAILS(usage, "needs a scale above 0",
                 make({{"init-lora-weights", "pissa"}, {"alpha-pattern", "query=0"}}));
    EXPECT_FAILS(usage, "singular values, rank is 900",
                 make({{"init-lora-weights", "pissa"}, {"rank", "900"}}));
}

TEST(SiteNumbers, NamesAndExpressionsAsInPeft) {
    AdaptedModel adapted(
        test::kLlamaTied.load(),
        lora({{"rank-pattern", "q_proj=3,layers.1.mlp.up_proj=4,.*0\\.self_attn\\.[ko]_proj=5"}}));
    auto rank = [&](const char* layer) {
        return adapted.parameters().find(fmt::format("model.layers.{}.lora_A.weight", layer))->value.size(0);
    };
    EXPECT_EQ(rank("0.self_attn.q_proj"), 3);
    EXPECT_EQ(rank("1.self_attn.q_proj"), 3);
    EXPECT_EQ(rank("1.mlp.up_proj"), 4);
    EXPECT_EQ(rank("0.mlp.up_proj"), 8);
    EXPECT_EQ(rank("0.self_attn.k_proj"), 5);
    EXPECT_EQ(rank("1.self_attn.k_proj"), 8);
    EXPECT_EQ(adapted.files("base").config["rank_pattern"].dump(),
              R"({".*0\\.self_attn\\.[ko]_proj":5,"layers.1.mlp.up_proj":4,"q_proj":3})");
}

// MiCA: B is what W hardly uses, and stays.
TEST(LoraStart, MicaTrainsAAlone) {
    AdaptedModel adapted(test::kLlamaTied.load(), lora({{"init-lora-weights", "mica"}, {"rank", "3"}}));
    const auto& site = *adapted.sites().front();
    auto value = [&](const AdaptedModel& model, const char* end) {
        return *model.parameters().find(site.name() + end);
    };
    const auto b = value(adapted, ".lora_B.weight").value;
    EXPECT_TRUE(near(b.t().mm(b), at::eye(3), 1e-5));
    const auto s = std::get<1>(at::linalg_svd(site.linear.weight));
    EXPECT_NEAR(site.linear.weight.t().mm(b).norm().item<double>(),
                s.slice(0, s.size(0) - 3).norm().item<double>(), 1e-4);
    EXPECT_FALSE(value(adapted, ".lora_B.weight").trained);
    EXPECT_FALSE(value(adapted, ".lora_A.weight").value.any().item<bool>());
    const auto files = adapted.files("base");
    EXPECT_EQ(files.config["init_lora_weights"], "mica");
    EXPECT_FALSE(value(AdaptedModel(test::kLlamaTied.load(), files), ".lora_B.weight").trained);
}

// PEFT changes the base for these starts, and saves an output layer so; or the embeddings with it.
TEST(LoraStart, AnOutputLayerThatPeftChanged) {
    auto files =
        AdaptedModel(test::kLlamaTied.load(), {.method = "lora", .targets = {.modules = "lm_head,q_proj"}})
            .files("base");
    files.config["init_lora_weights"] = "PiSSA";
    EXPECT_FAILS(adapter, "init_lora_weights = \"pissa\" changed \"lm_head\"",
                 AdaptedModel(test::kLlamaTied.load(), files));
}

// Of an adapter that was made on the base model without head, whose paths lack its name.
TEST(SiteNumbers, FitPathsAsTheyWereWhereTheAdapterWasMade) {
    auto files = AdaptedModel(test::kBert.load(), lora({})).files("base");
    files.config["target_modules"] = "all-linear";
    const auto alpha = [&](const char* expression) {
        files.config["alpha_pattern"] = {{expression, 80}};
        AdaptedModel adapted(test::kBert.load(), files);
        const data::Batch nothing;
        adapted.bind({.batch = nothing});
        return std::get<nn::LowRank>(adapted.sites().front()->forms.delta.front().front()).scale * 8;
    };
    const char *shorter = R"(^encoder\.layer\.0\.attention\.self\.query)",
               *longer = R"(^bert\.encoder\.layer\.0\.attention\.self\.query)";
    EXPECT_EQ(alpha(shorter), 16);
    EXPECT_EQ(alpha(longer), 80);
    for (auto& [name, tensor] : files.tensors)
        if (const auto at = name.find("bert."); at != std::string::npos) name.erase(at, 5);
    EXPECT_EQ(alpha(shorter), 80);
    EXPECT_EQ(alpha(longer), 16);
}

// PEFT sorts a file's keys, and takes the first that fits.
TEST(SiteNumbers, OfAFileTheFirstThatFits) {
    auto files = AdaptedModel(test::kBert.load(), lora({})).files("base");
    files.config["alpha_pattern"] = {{"self.query", 2}, {"query", 4}};
    const auto scale = [&] {
        AdaptedModel adapted(test::kBert.load(), files);
        const data::Batch nothing;
        adapted.bind({.batch = nothing});
        for (const nn::Site* site : adapted.sites())
            if (site->name().ends_with("query"))
                return std::get<nn::LowRank>(site->forms.delta.front().front()).scale;
        return 0.0;
    };
    EXPECT_EQ(scale(), 4.0 / 8);
    files.config["alpha_pattern"].erase("query");
    EXPECT_EQ(scale(), 2.0 / 8);
}

TEST(SiteNumbers, WhatCannotBeIsSaid) {
    auto make = [](const char* ranks) { AdaptedModel(test::kBert.load(), lora({{"rank-pattern", ranks}})); };
    EXPECT_FAILS(usage, "--rank-pattern: \"uery\" fits none of the adapted layers, such as bert.encoder",
                 make("uery=3"));
    EXPECT_FAILS(usage, "--rank-pattern: \"query\" has the value 2.5, expected a whole number",
                 make("query=2.5"));
    EXPECT_FAILS(usage, "\"query\" and \"self.query\" both fit", make("query=2,self.query=3"));
    EXPECT_NO_THROW(make("query=2,self.query=2"));
    EXPECT_FAILS(usage, "--rank-pattern: \"(query\" is not a regular expression", make("(query=2"));
    EXPECT_FAILS(usage, "--rank-pattern: \"quer[[:alpha:]]\" is not a regular expression",
                 make("quer[[:alpha:]]=2"));
    auto files = io::read_adapter("tests/fixtures/peft/bert_lora");
    files.config["rank_pattern"] = {{"quer(y", 3}};
    EXPECT_FAILS(adapter, "adapter_config.json: rank_pattern: \"quer(y\" is not a regular expression",
                 AdaptedModel(test::kBert.load(), files));
}

}  // namespace
}  // namespace ether::methods
