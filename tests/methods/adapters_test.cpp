// Adapter files: ours and PEFT's (tests/fixtures/make_peft.py), whole and broken.
#include <gtest/gtest.h>

#include <limits>
#include <nlohmann/json.hpp>

#include "ether/io/adapter_folder.h"
#include "ether/methods/adapted_model.h"
#include "ether/methods/registry.h"
#include "fixture_models.h"
#include "io/test_files.h"
#include "methods/merged.h"

namespace ether::methods {
namespace {

using at::Tensor;
using test::FixtureModel;
using test::near;

// PEFT's own files give PEFT's own logits and gradients.
class Peft : public testing::TestWithParam<std::pair<const char*, FixtureModel>> {};

TEST_P(Peft, LogitsAndGradientsAgree) {
    const auto& [name, fixture] = GetParam();
    const auto folder = std::filesystem::path("tests/fixtures/peft") / name;
    AdaptedModel adapted(fixture.load(), io::read_adapter(folder));
    const io::SafetensorsFile expected(folder / "expected.safetensors");
    for (int64_t row = 0; row < 4; ++row) {
        const auto batch = fixture.batch({row});
        const auto logits = adapted.logits({.batch = batch});
        const auto reference = expected.tensor(fmt::format("logits.{}", row));
        EXPECT_TRUE(near(logits.view_as(reference), reference, 1e-5));
    }
    const auto batch = fixture.batch({0});
    const auto logits = adapted.logits({.batch = batch}).flatten();
    (logits * at::arange(logits.numel(), at::kDouble).cos()).sum().backward();
    int64_t gradients = 0;
    for (const auto& parameter : adapted.parameters().trained()) {
        auto key =
            fmt::format("gradient.base_model.{}{}", parameter.shared() ? "" : "model.", parameter.name);
        if (std::string(name).ends_with("_prefix"))  // nothing is wrapped
            key = fmt::format("gradient.{}{}", parameter.shared() ? "" : "base_model.", parameter.name);
        if (!expected.contains(key)) continue;
        ++gradients;
        EXPECT_TRUE(near(parameter.value.grad(), expected.tensor(key), 2e-5)) << parameter.name;
    }
    EXPECT_EQ(gradients, static_cast<int64_t>(expected.names().size()) - 4);
    // Written again, nothing is lost.
    const auto files = adapted.files("base");
    AdaptedModel again(fixture.load(), files);
    const auto all = fixture.batch();
    const auto first = adapted.logits({.batch = all}), second = again.logits({.batch = all});
    // Starts that move the base are written as a LoRA of twice the rank: another order of the same sum.
    const bool moved = files.config.value("r", 0) != io::read_adapter(folder).config.value("r", 0);
    EXPECT_TRUE(moved ? near(second, first, 1e-6) : at::equal(second, first));
}

std::vector<std::pair<const char*, FixtureModel>> peft_folders() {
    std::vector<std::pair<const char*, FixtureModel>> folders = {
        {"llama_layers", test::kFixtureModels[2]},
        {"llama_head", test::kFixtureModels[2]},
        {"roberta_lora", test::kFixtureModels.back()},
    };
    for (const char* name : {"bert_lora",
                             "bert_ia3",
                             "bert_dora",
                             "bert_hra",
                             "bert_oft",
                             "bert_vera",
                             "bert_delora",
                             "bert_adalora",
                             "bert_ln_tuning",
                             "bert_loha",
                             "bert_randlora",
                             "bert_vblora",
                             "bert_fourierft",
                             "bert_miss",
                             "bert_bias_all",
                             "bert_bias_lora_only",
                             "bert_waveft",
                             "bert_c3a",
                             "bert_hira",
                             "bert_road",
                             "bert_gralora",
                             "bert_lokr",
                             "bert_shira",
                             "bert_boft",
                             "bert_pissa",
                             "bert_loha_patterns",
                             "bert_lokr_patterns",
                             "bert_delora_patterns",
                             "bert_hira_patterns",
                             "bert_c3a_patterns",
                             "bert_fourierft_patterns",
                             "bert_waveft_patterns",
                             "bert_tokens",
                             "bert_lora_tokens",
                             "bert_prefix"})
        folders.emplace_back(name, test::kBert);
    for (const char* name :
         {"llama_rslora",   "llama_tied_head", "llama_ia3",         "llama_dora",      "llama_hra",
          "llama_vera",     "llama_delora",    "llama_adalora",     "llama_ln_tuning", "llama_loha",
          "llama_randlora", "llama_vblora",    "llama_fourierft",   "llama_miss",      "llama_waveft",
          "llama_c3a",      "llama_hira",      "llama_road",        "llama_road4",     "llama_gralora",
          "llama_lokr",     "llama_shira",     "llama_boft",        "llama_oft",       "llama_olora",
          "llama_patterns", "llama_tokens",    "llama_lora_tokens", "llama_prefix"})
        folders.emplace_back(name, test::kLlamaTied);
    return folders;
}

INSTANTIATE_TEST_SUITE_P(Fixtures, Peft, testing::ValuesIn(peft_folders()),
                         [](const auto& info) { return std::string(info.param.first); });

TEST(PeftConfig, AnotherBaseThanTheSavedOneIsRefused) {
    auto files = io::read_adapter("tests/fixtures/peft/llama_head");
    for (auto& [name, tensor] : files.tensors)
        if (name.ends_with("base_layer.weight")) tensor = tensor + 1;
    EXPECT_FAILS(adapter, "differs from this base model's",
                 AdaptedModel(test::kFixtureModels[2].load(), files));
}

TEST(PeftConfig, StartsThatMoveTheBaseUnseenAreRefused) {
    auto files = io::read_adapter("tests/fixtures/peft/bert_lora");
    for (const char* start : {"corda", "loftq", "lora_ga", "pissa_niter_4"}) {
        files.config["init_lora_weights"] = start;
        EXPECT_FAILS(adapter, "init_lora_weights", AdaptedModel(test::kBert.load(), files));
    }
    for (const char* start : {"gaussian", "eva"}) {
        files.config["init_lora_weights"] = start;
        files.config["eva_config"] = {{"rho", 2}};
        EXPECT_NO_THROW(AdaptedModel(test::kBert.load(), files));
    }
}

// The walk over all methods scales outputs only; here are inputs, too.
TEST(Ia3, InputsAndOutputsMerge) {
    for (const auto& [name, fixture] :
         {std::pair{"bert_ia3", test::kBert}, std::pair{"llama_ia3", test::kLlamaTied}}) {
        AdaptedModel adapted(fixture.load(),
                             io::read_adapter(std::filesystem::path("tests/fixtures/peft") / name));
        const auto batch = fixture.batch();
        const auto merged = fixture.load();
        for (const auto& [tensor, value] : adapted.merged_tensors(at::kFloat)) merged->replace(tensor, value);
        EXPECT_TRUE(near(merged->logits({.batch = batch}), adapted.logits({.batch = batch}), 1e-5));
    }
}

TEST(Ia3, StartsAsTheBase) {
    AdaptedModel adapted(test::kBert.load(),
                         {.method = "ia3", .options = {{"feedforward-modules", "output.dense"}}, .seed = 3});
    EXPECT_EQ(adapted.parameters().find("bert.encoder.layer.0.output.dense.ia3_l")->value.size(0), 1);
    EXPECT_EQ(adapted.parameters().find("bert.encoder.layer.0.attention.self.query.ia3_l")->value.size(1), 1);
    const auto batch = test::kBert.batch();
    EXPECT_TRUE(at::equal(adapted.logits({.batch = batch}), test::kBert.load()->logits({.batch = batch})));
}

// PEFT takes layers beside a list of names alone.
TEST(Lora, AnExpressionWithLayersIsWrittenAsPaths) {
    const AdapterConfig wanted{.method = "lora",
                               .targets = {.modules = R"(.*\.(up|down)_proj)", .layers = "1"}};
    const auto config = AdaptedModel(test::kLlamaTied.load(), wanted).files("base").config;
    EXPECT_EQ(config["target_modules"],
              nlohmann::json({"model.layers.1.mlp.up_proj", "model.layers.1.mlp.down_proj"}));
    EXPECT_FALSE(config.contains("layers_to_transform"));
}

TEST(Ia3, ConfigurationsInPeftsWords) {
    auto config = [](const Targets& targets) {
        const AdapterConfig wanted{
            .method = "ia3", .options = {{"feedforward-modules", "down_proj"}}, .targets = targets};
        return AdaptedModel(test::kLlamaTied.load(), wanted).files("base").config;
    };
    const auto plain = config({.modules = "v_proj,down_proj"});
    EXPECT_EQ(plain["target_modules"], nlohmann::json({"v_proj", "down_proj"}));
    EXPECT_EQ(plain["feedforward_modules"], nlohmann::json({"down_proj"}));
    const auto layer = config({.modules = "v_proj,down_proj", .layers = "1"});
    EXPECT_FALSE(layer.contains("layers_to_transform"));
    EXPECT_EQ(layer["target_modules"],
              nlohmann::json({"model.layers.1.self_attn.v_proj", "model.layers.1.mlp.down_proj"}));
    EXPECT_EQ(layer["feedforward_modules"], nlohmann::json({"model.layers.1.mlp.down_proj"}));
    const auto all = config({});
    EXPECT_EQ(all["target_modules"].size(), 14U);
    EXPECT_EQ(all["feedforward_modules"],
              nlohmann::json({"model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"}));
}

TEST(Ia3, FeedforwardModulesAreTargets) {
    EXPECT_FAILS(usage, "--feedforward-modules: no target is named \"output.dens\"",
                 AdaptedModel(test::kBert.load(),
                              AdapterConfig{.method = "ia3",
                                            .options = {{"feedforward-modules", "key,output.dens"}},
                                            .targets = {.modules = "key,output.dense"}}));
}

class Files : public testing::Test {
  protected:
    AdaptedModel adapted{test::kBert.load(),
                         AdapterConfig{.method = "ether+", .targets = {.modules = "query,value"}, .seed = 3}};
    io::AdapterFiles files = adapted.files("tiny-bert");

    void load() const { AdaptedModel(test::kBert.load(), files); }
    Tensor& first() { return files.tensors.front().second; }
};

TEST_F(Files, RoundTripThroughAFolder) {
    const test::TempFolder folder;
    io::write_adapter(folder.path(), files);
    const auto read = io::read_adapter(folder.path());
    EXPECT_EQ(read.config.at("peft_type"), "ETHER_PLUS");
    EXPECT_EQ(read.config.at("target_modules"), nlohmann::json({"query", "value"}));
    EXPECT_EQ(read.config.at("base_model_name_or_path"), "tiny-bert");
    EXPECT_TRUE(std::any_of(read.tensors.begin(), read.tensors.end(), [](const auto& entry) {
        return entry.first == "base_model.model.bert.encoder.layer.0.attention.self.query.ether_u";
    }));
    AdaptedModel again(test::kBert.load(), read);
    ASSERT_EQ(again.parameters().all().size(), adapted.parameters().all().size());
    for (const auto& parameter : adapted.parameters().all())
        EXPECT_TRUE(at::equal(again.parameters().find(parameter.name)->value, parameter.value));
}

TEST_F(Files, NamesWithoutThePrefixOfTheAutoClass) {  // saved on a bare BertModel
    for (auto& [name, tensor] : files.tensors) name.erase(name.find("bert."), 5);
    EXPECT_NO_THROW(load());
}

TEST_F(Files, MissingTensor) {
    const auto name = files.tensors.front().first;
    files.tensors.erase(files.tensors.begin());
    EXPECT_FAILS(adapter, "lacks the tensor \"" + name + "\" (4, 8)", load());
}

TEST_F(Files, UnknownTensor) {
    files.tensors.emplace_back("base_model.model.bert.encoder.layer.7.query.ether_u", at::ones({4, 8}));
    EXPECT_FAILS(adapter, "\"base_model.model.bert.encoder.layer.7.query.ether_u\" (4, 8) fits nothing",
                 load());
}

TEST_F(Files, WrongShape) {
    first() = at::ones({2, 16});
    EXPECT_FAILS(adapter, "has shape (2, 16), but this model and configuration need (4, 8)", load());
}

TEST_F(Files, NotANumber) {
    first() = at::full({4, 8}, std::numeric_limits<float>::quiet_NaN());
    EXPECT_FAILS(numeric, "holds NaN or infinity", load());
}

TEST_F(Files, ConfigurationsThatAreNotUnderstood) {
    auto with = [&](const char* key, const nlohmann::json& value) {
        auto changed = files;
        changed.config[key] = value;
        AdaptedModel(test::kBert.load(), changed);
    };
    EXPECT_FAILS(adapter, "key \"blcks\" = 8 is not supported for ETHER_PLUS; did you mean \"blocks\"",
                 with("blcks", 8));
    EXPECT_FAILS(adapter, "bias = \"all\" is not supported", with("bias", "all"));
    EXPECT_FAILS(adapter, "peft_type \"BLOB\" is no method of this version", with("peft_type", "BLOB"));
    EXPECT_FAILS(adapter, "target_modules", with("target_modules", 5));
    EXPECT_FAILS(adapter, "rows", with("target_modules", {"rows"}));
    EXPECT_ANY_THROW(with("blocks", "many"));
    EXPECT_ANY_THROW(with("side", "left"));
    EXPECT_ANY_THROW(with("blocks", -1));
    EXPECT_NO_THROW(with("some_feature_that_is_off", false));
    EXPECT_NO_THROW(with("peft_version", "0.99"));
    files.config.erase("peft_type");
    EXPECT_FAILS(format, "\"peft_type\" is missing", load());
}

TEST_F(Files, HeadsThatPeftListsNeedNotExist) {
    files.config["modules_to_save"] = {"classifier", "score", "classifier", "score"};
    EXPECT_FAILS(adapter, "lacks the tensor \"base_model.model.classifier.", load());
    const auto head = adapted.model().module_tensors("classifier");
    for (const auto& name : head)
        files.tensors.emplace_back("base_model.model." + name, *adapted.model().tensors().at(name).front());
    EXPECT_NO_THROW(load());
    files.config["modules_to_save"] = {"decoder"};
    EXPECT_FAILS(usage, "the model has no module \"decoder\"", load());
}

TEST(NewAdapter, OptionsAreChecked) {
    auto make = [](const AdapterConfig& config) { AdaptedModel(test::kBert.load(), config); };
    EXPECT_FAILS(usage, "method ether has no such option; it has --blocks",
                 make({.method = "ether", .options = {{"rank", "4"}}}));
    EXPECT_FAILS(adapter, "method \"eter\" is not known", make({.method = "eter"}));
    EXPECT_FAILS(usage, "blocks", make({.method = "ether", .options = {{"blocks", "four"}}}));
    EXPECT_FAILS(usage, "bert.encoder.layer.0.attention.self.query",
                 make({.method = "ether", .options = {{"blocks", "5"}}}));
}

TEST(NewAdapter, TheSeedDecides) {
    auto first = [](uint64_t seed) {
        return AdaptedModel(test::kBert.load(), AdapterConfig{.method = "ether", .seed = seed})
            .parameters()
            .all()
            .front()
            .value;
    };
    EXPECT_TRUE(at::equal(first(1), first(1)));
    EXPECT_FALSE(at::equal(first(1), first(2)));
}

TEST(ModulesToSave, ThatOverlapAreTrainedOnce) {
    const AdaptedModel once(test::kBert.load(),
                            AdapterConfig{.method = "lora", .modules_to_save = {"pooler"}}),
        twice(test::kBert.load(),
              {.method = "lora", .modules_to_save = {"pooler", "pooler.dense", "bert.pooler", "pooler"}});
    EXPECT_EQ(twice.parameters().count(), once.parameters().count());
}

TEST(Merge, AnAdaptedTiedHeadIsWrittenApart) {
    AdaptedModel adapted(test::kLlamaTied.load(),
                         AdapterConfig{.method = "ether", .targets = {.modules = "lm_head"}});
    const auto embeddings = adapted.model().tensors().at("model.embed_tokens.weight").front()->clone();
    std::map<std::string, at::Tensor> merged;
    for (auto& [name, tensor] : adapted.merged_tensors(at::kFloat)) merged[name] = tensor;
    EXPECT_TRUE(at::equal(merged.at("model.embed_tokens.weight"), embeddings));
    EXPECT_FALSE(at::allclose(merged.at("lm_head.weight"), embeddings));
}

}  // namespace
}  // namespace ether::methods
