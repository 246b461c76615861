// Options of single methods that PEFT has: what they choose, how they act and what stands in a file.
#include <ATen/Functions.h>
#include <gtest/gtest.h>

#include <map>
#include <nlohmann/json.hpp>

#include "ether/methods/adapted_model.h"
#include "fixture_models.h"
#include "io/test_files.h"
#include "methods/merged.h"

namespace ether::methods {
namespace {

using at::Tensor;
using test::near;
using Options = std::map<std::string, std::string>;

// PEFT reads a string as an expression, and matches a list's names by the path's end.
TEST(Ia3, ExpressionsChooseFeedforwardModules) {
    AdapterConfig wanted{.method = "ia3",
                         .options = {{"feedforward-modules", R"(.*\.1\.mlp\.down_proj)"}},
                         .targets = {.modules = "v_proj,down_proj"}};
    const AdaptedModel adapted(test::kLlamaTied.load(), wanted);
    auto on_input = [](const AdaptedModel& model, const char* layer) {
        return model.parameters().find(fmt::format("model.layers.{}.ia3_l", layer))->value.size(0) == 1;
    };
    EXPECT_TRUE(on_input(adapted, "1.mlp.down_proj"));
    EXPECT_FALSE(on_input(adapted, "0.mlp.down_proj"));
    auto files = adapted.files("base");
    EXPECT_EQ(files.config["feedforward_modules"], nlohmann::json({"model.layers.1.mlp.down_proj"}));
    EXPECT_EQ(files.config["target_modules"].size(), 4U);
    files.config["feedforward_modules"] = R"(.*\.1\..*down_proj)";
    EXPECT_TRUE(on_input(AdaptedModel(test::kLlamaTied.load(), files), "1.mlp.down_proj"));
    files.config["feedforward_modules"] = "down_proj";  // matches no whole path
    EXPECT_FAILS(adapter,
                 "adapter_config.json: feedforward_modules: \"(?:down_proj)\" matches none of the targets",
                 AdaptedModel(test::kLlamaTied.load(), files));
}

TEST(LnTuning, NamesAndExpressionsChooseNorms) {
    auto trained = [](const io::AdapterFiles& files) {
        return AdaptedModel(test::kLlamaTied.load(), files).parameters().trained().size();
    };
    AdapterConfig wanted{.method = "ln-tuning", .options = {{"norms", R"(.*input_layernorm)"}}};
    auto files = AdaptedModel(test::kLlamaTied.load(), wanted).files("base");
    EXPECT_EQ(trained(files), 2U);
    EXPECT_EQ(files.config["target_modules"],
              nlohmann::json({"model.layers.0.input_layernorm", "model.layers.1.input_layernorm"}));
    files.config["target_modules"] = ".*norm";
    files.config["exclude_modules"] = {"post_attention_layernorm", "model.norm"};
    EXPECT_EQ(trained(files), 2U);
    wanted.options = {{"norms", "input_layernorn"}};
    EXPECT_FAILS(usage, "--norms: no norm is named \"input_layernorn\"; did you mean",
                 AdaptedModel(test::kLlamaTied.load(), wanted));
    files.config["target_modules"] = {"input_layernorn"};
    EXPECT_FAILS(adapter, "adapter_config.json: target_modules: no norm is named \"input_layernorn\"",
                 AdaptedModel(test::kLlamaTied.load(), files));
}

// PEFT's dropouts of LoHa and LoKr: rows of a layer's change, or all of it, are left out of a training step.
TEST(DeltaDropout, LeavesOutRowsAndLayers) {
    for (const char* method : {"loha", "lokr"}) {
        auto change = [&](const Options& options, bool training, uint64_t seed) {
            AdaptedModel adapted(
                test::kLlamaTied.load(),
                {.method = method, .options = options, .targets = {.modules = "up_proj", .layers = "0"}});
            for (const auto& parameter : adapted.parameters().trained()) parameter.value.detach().add_(0.1);
            const data::Batch nothing;
            adapted.bind({.batch = nothing, .training = training, .random = Random(seed)});
            const auto& site = *adapted.sites().front();
            const auto zero = at::zeros({site.linear.out(), site.linear.in()});
            return nn::merged(site.forms, zero, {}).first;
        };
        const auto whole = change({}, true, 1);
        const Options rows{{"rank-dropout", "0.5"}}, layer{{"module-dropout", "0.5"}};
        EXPECT_TRUE(at::equal(change(rows, false, 1), whole)) << method;
        const auto part = change(rows, true, 1);
        const auto kept = part.abs().sum(1).ne(0);
        const double share = kept.to(at::kDouble).mean().item<double>();
        EXPECT_TRUE(share > 0.2 && share < 0.8) << share;
        const double factor = std::string(method) == "loha" ? 1 / share : 1;  // LoHa's is scaled
        EXPECT_TRUE(near(part, whole * kept.unsqueeze(1) * factor, 1e-5)) << method;
        int dropped = 0;
        for (uint64_t seed = 0; seed < 40; ++seed) {
            const auto found = change(layer, true, seed);
            const bool none = !found.any().item<bool>();
            EXPECT_TRUE(none || at::equal(found, whole));
            dropped += none;
        }
        EXPECT_TRUE(dropped > 8 && dropped < 32) << dropped;
    }
}

// PEFT's `bias`, of every method that has it there.
TEST(Biases, OtherWordsAreNotKnown) {
    EXPECT_FAILS(
        usage, "--bias: \"some\" is not known, expected none, adapted or all",
        AdaptedModel(test::kBert.load(), AdapterConfig{.method = "hra", .options = {{"bias", "some"}}}));
}

TEST(Biases, AreTrainedSavedAndMergedBesideAMethod) {
    for (const auto& [method, only] : {std::pair{"hra", "hra_only"},
                                       {"delora", "delora_only"},
                                       {"adalora", "lora_only"},
                                       {"lora", "lora_only"}}) {
        for (const std::string choice : {"adapted", "all"}) {
            AdaptedModel adapted(
                test::kBert.load(),
                {.method = method, .options = {{"bias", choice}}, .targets = {.modules = "query"}});
            const auto* own =
                adapted.parameters().find("bert.encoder.layer.0.attention.self.query.base_layer.bias");
            ASSERT_TRUE(own) << method;
            EXPECT_EQ(adapted.parameters().find("bert.encoder.layer.0.output.dense.bias") != nullptr,
                      choice == "all");
            own->value.detach().add_(0.5);
            const auto batch = test::kBert.batch();
            const auto logits = adapted.logits({.batch = batch});
            auto files = adapted.files("base");
            EXPECT_EQ(files.config["bias"], choice == "all" ? "all" : only);
            if (choice != "all") files.config["bias"] = "other_only";  // as PEFT reads it
            AdaptedModel again(test::kBert.load(), files);
            EXPECT_TRUE(at::equal(again.logits({.batch = batch}), logits)) << method;
            EXPECT_TRUE(near(merged_of(adapted, test::kBert)->logits({.batch = batch}), logits, 1e-5))
                << method;
        }
    }
}

// PEFT's save_only_topk_weights.
TEST(Vblora, KeepsTheLargestMixturesAlone) {
    const AdapterConfig wanted{.method = "vblora",
                               .options = {{"vector-length", "4"},
                                           {"num-vectors", "300"},
                                           {"topk", "3"},
                                           {"save-only-topk-weights", "true"}}};
    AdaptedModel adapted(test::kLlamaTied.load(), wanted);
    auto files = adapted.files("base");
    std::map<std::string, Tensor> tensors(files.tensors.begin(), files.tensors.end());
    const std::string logits = "base_model.model.model.layers.0.mlp.up_proj.vblora_logits_A";
    EXPECT_FALSE(tensors.contains(logits));
    EXPECT_EQ(tensors.at(logits + "_topk_indices").scalar_type(), at::kShort);
    EXPECT_EQ(tensors.at(logits + "_topk_weights").size(2), 2);
    const auto batch = test::kLlamaTied.batch();
    AdaptedModel again(test::kLlamaTied.load(), files);
    EXPECT_TRUE(near(again.logits({.batch = batch}), adapted.logits({.batch = batch}), 3e-6));
    for (auto& [name, tensor] : files.tensors)
        if (name == logits + "_topk_indices") tensor.fill_(300);
    EXPECT_FAILS(adapter, "are not the numbers of 3 of 300 vectors each",
                 AdaptedModel(test::kLlamaTied.load(), files));
}

TEST(Oft, AConstraintThatPeftAppliesAtEveryPassIsRefused) {
    AdaptedModel adapted(test::kLlamaTied.load(), {.method = "oft", .options = {{"block-size", "4"}}});
    auto files = adapted.files("base");
    files.config["coft"] = true;
    EXPECT_FAILS(adapter, "coft = true: PEFT shrinks", AdaptedModel(test::kLlamaTied.load(), files));
}

}  // namespace
}  // namespace ether::methods
