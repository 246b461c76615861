// UniPELT against the published code's numbers (tests/fixtures/official/unipelt), and its gates.
#include <gtest/gtest.h>

#include "ether/methods/adapted_model.h"
#include "ether/models/bert_encoder.h"
#include "fixture_models.h"
#include "gradcheck.h"
#include "io/test_files.h"
#include "methods/official.h"

namespace ether::methods {
namespace {

using at::Tensor;
using test::flat;
using test::kOfficial;
using test::near;
using test::tensor_of;

// The published mean of a gate includes padding, ours does not: only the fixtures' first text has none.
class OfficialUnipelt : public testing::TestWithParam<const char*> {};

// A BERT without head whose encoder holds the fixture's weights.
std::unique_ptr<nn::Model> bert_of(const nlohmann::json& json) {
    const auto& config = json["config"];
    const auto width = config["hidden"].get<int64_t>();
    io::NamedTensors weights = {
        {"bert.embeddings.word_embeddings.weight", at::zeros({4, width}, at::kDouble)},
        {"bert.embeddings.position_embeddings.weight", at::zeros({8, width}, at::kDouble)},
        {"bert.embeddings.token_type_embeddings.weight", at::zeros({2, width}, at::kDouble)},
        {"bert.embeddings.LayerNorm.weight", at::ones({width}, at::kDouble)},
        {"bert.embeddings.LayerNorm.bias", at::zeros({width}, at::kDouble)},
        {"bert.pooler.dense.weight", at::zeros({width, width}, at::kDouble)},
        {"bert.pooler.dense.bias", at::zeros({width}, at::kDouble)},
        {"classifier.weight", at::zeros({2, width}, at::kDouble)},
        {"classifier.bias", at::zeros({2}, at::kDouble)},
    };
    for (const auto& [name, value] : json["parameters"].items())
        if (name.starts_with("layer.") && name.find("lora") == std::string::npos &&
            name.find("gate") == std::string::npos && name.find("adapters") == std::string::npos)
            weights.emplace_back("bert.encoder." + name, tensor_of(value));
    const test::TempFolder folder;
    io::write_safetensors(folder / "model.safetensors", weights);
    const nlohmann::json model_config = {{"model_type", "bert"},
                                         {"vocab_size", 4},
                                         {"hidden_size", width},
                                         {"intermediate_size", config["intermediate"]},
                                         {"num_hidden_layers", config["layers"]},
                                         {"num_attention_heads", config["heads"]},
                                         {"layer_norm_eps", config["layer_norm_eps"]},
                                         {"hidden_act", config["hidden_act"]},
                                         {"max_position_embeddings", 8},
                                         {"type_vocab_size", 2}};
    test::write_raw(folder / "config.json", model_config.dump());
    return models::load_model(io::Checkpoint::open(folder.path()),
                              {.head = nn::Head::sequence_classification, .dtype = at::kDouble});
}

// The published name of a parameter of ours; empty: there is none.
std::string published(std::string name) {
    auto replace = [&](std::string_view ours, std::string_view theirs) {
        if (const auto at = name.find(ours); at != std::string::npos) name.replace(at, ours.size(), theirs);
    };
    replace("bert.encoder.", "");
    replace("lora_A.weight", "lora_A");
    replace("lora_B.weight", "lora_B");
    replace("prefix.embedding", "prefix_enc_embed.weight");
    replace("prefix.projection.0", "prefix_embed_MLP.0");
    replace("prefix.projection.1", "prefix_embed_MLP.2");
    replace("unipelt.", "layer.");
    replace(".central_gate", ".attention.self.prefix_central_gate");
    replace(".prefix_gate", ".attention.self.prefix_gate");
    if (name.find(".mlp.") != std::string::npos || name.find(".attention.down") != std::string::npos ||
        name.find(".attention.up") != std::string::npos ||
        name.find(".attention.gate") != std::string::npos) {
        replace(".mlp.", ".output.adapters.t.");
        for (const char* part : {"down", "up", "gate"})
            replace(fmt::format(".attention.{}", part), fmt::format(".attention.output.adapters.t.{}", part));
        replace(".t.down.", ".t.adapter_down.0.");
        replace(".t.up.", ".t.adapter_up.");
    }
    return name;
}

TEST_P(OfficialUnipelt, HiddenStatesAndTheirGradient) {
    const auto json = test::official(std::filesystem::path("tests/fixtures/official/unipelt") / GetParam());
    const auto& config = json["config"];
    std::string modules;
    for (const char* module : {"lora", "prefix"})
        if (config[module].get<bool>()) modules += fmt::format("{}{}", modules.empty() ? "" : ",", module);
    const bool has_adapter = config["adapter"].is_string();
    if (has_adapter) modules += modules.empty() ? "adapter" : ",adapter";
    const bool gated = config["lora_gate"].get<bool>() || config["prefix_gate"].get<bool>() ||
                       config["adapter_gate"].get<bool>();
    std::map<std::string, std::string> options = {{"modules", modules},
                                                  {"gates", config.value("central", false) ? "central"
                                                            : gated                        ? "own"
                                                                                           : "none"}};
    const auto give = [&](bool counts, const char* name, const std::string& value) {
        if (counts) options[name] = value;
    };
    give(has_adapter, "placement", has_adapter ? config["adapter"].get<std::string>() : "");
    give(has_adapter, "bottleneck-size", config["adapter_bottleneck"].dump());
    give(config["lora"].get<bool>(), "rank", config["lora_r"].dump());
    give(config["prefix"].get<bool>(), "prefix-length", config["prefix_len"].dump());
    give(config["prefix"].get<bool>(), "projection", "5");
    if (options["gates"] == "none") options["alpha"] = config["lora_alpha"].dump();
    AdaptedModel adapted(bert_of(json), AdapterConfig{.method = "unipelt", .options = options});
    for (const auto& parameter : adapted.parameters().trained()) {
        if (parameter.group != nn::ParameterGroup::adapter) continue;
        const auto name = published(parameter.name);
        ASSERT_TRUE(json["parameters"].contains(name)) << parameter.name << " " << name;
        const auto value = tensor_of(json["parameters"][name]);
        ASSERT_EQ(value.sizes(), parameter.value.sizes()) << name;
        Tensor(parameter.value).set_data(value);
    }
    const auto x = tensor_of(json["inputs"]["hidden_states"])[0].clone().requires_grad_(true);
    const data::Sequence sequence{.ids = std::vector<int64_t>(static_cast<size_t>(x.size(0)), 1)};
    const auto batch = data::collate(std::vector{sequence}, std::vector<int64_t>{0}, data::LabelType::none);
    const nn::Pass pass{.batch = batch};
    adapted.bind(pass);
    const auto y = dynamic_cast<models::BertEncoder&>(adapted.model()).encode(x, pass);
    EXPECT_TRUE(near(y, tensor_of(json["outputs"]["hidden_states_per_layer"].back())[0], kOfficial));
    (y * tensor_of(json["inputs"]["cotangent"])[0]).sum().backward();
    EXPECT_TRUE(near(x.grad(), tensor_of(json["gradients"]["hidden_states"])[0], kOfficial));
}

INSTANTIATE_TEST_SUITE_P(Fixtures, OfficialUnipelt,
                         testing::Values("lora_gated.json", "lora_ungated.json", "prefix_gated.json",
                                         "prefix_ungated.json", "adapter_pfeiffer_gated.json",
                                         "adapter_pfeiffer_ungated.json", "adapter_houlsby_gated.json",
                                         "central_gate.json", "combined_gated.json"),
                         [](const auto& info) {
                             const std::string name = info.param;
                             return name.substr(0, name.find('.'));
                         });

TEST(SequenceGate, IsTheMeanOfEachSequenceAlone) {
    const auto h = test::normal({6, 4}, 1), weight = test::normal({1, 4}, 2), bias = test::normal({1}, 3);
    const auto offsets = at::tensor({0, 1, 4, 6}, at::kInt);
    const nn::SequenceGate gate{weight, bias};
    const auto gates = nn::gate_of(gate, h, offsets);
    const auto scores = (h.mm(weight.t()) + bias).sigmoid();
    for (int64_t i = 0; i < 3; ++i) {
        const auto begin = offsets[i].item<int64_t>(), end = offsets[i + 1].item<int64_t>();
        EXPECT_NEAR(gates[i].item<double>(), scores.slice(0, begin, end).mean().item<double>(), 1e-12);
    }
    const auto factors = nn::gated(at::ones({6, 1}, at::kDouble), gates, offsets).flatten();
    EXPECT_TRUE(at::equal(factors, gates.index_select(0, at::tensor({0, 1, 1, 1, 2, 2}))));
    // Two that share one unit.
    const nn::SequenceGate first{test::normal({2, 4}, 4), test::normal({2}, 5), 0};
    auto second = first;
    second.index = 1;
    EXPECT_TRUE(near(nn::gate_of(first, h, offsets) + nn::gate_of(second, h, offsets),
                     at::ones({3}, at::kDouble), 1e-12));
}

TEST(Unipelt, GatesOfLoraAloneAreNotMerged) {
    AdaptedModel adapted(test::kBert.load(), {.method = "unipelt", .options = {{"modules", "lora"}}});
    const auto batch = test::kBert.batch();
    EXPECT_TRUE(at::equal(adapted.logits({.batch = batch}), test::kBert.load()->logits({.batch = batch})));
    EXPECT_FAILS(adapter, "gated by each text", adapted.merged_tensors(at::kFloat));
    AdaptedModel ungated(test::kBert.load(),
                         {.method = "unipelt", .options = {{"modules", "lora"}, {"gates", "none"}}});
    EXPECT_NO_THROW(ungated.merged_tensors(at::kFloat));
}

TEST(Unipelt, APoolersGateIsOfTheOneTokenItReads) {
    AdaptedModel adapted(test::kBert.load(), AdapterConfig{.method = "unipelt",
                                                           .options = {{"modules", "lora"}},
                                                           .targets = {.modules = "all-linear"}});
    uint64_t seed = 1;
    const at::NoGradGuard no_grad;
    for (const auto& parameter : adapted.parameters().trained())
        parameter.value.copy_(0.3 * test::normal(parameter.value.sizes(), ++seed));
    const auto batch = test::kBert.batch();
    const auto together = adapted.logits({.batch = batch});
    for (int64_t row = 0; row < batch.size(); ++row) {
        const auto alone = test::kBert.batch({row});
        EXPECT_TRUE(near(adapted.logits({.batch = alone}), together.narrow(0, row, 1), 1e-5)) << row;
    }
}

TEST(Unipelt, WhatCannotBeIsSaid) {
    EXPECT_FAILS(usage, "a language model would be told what it is to predict",
                 AdaptedModel(test::kLlamaTied.load(), AdapterConfig{.method = "unipelt"}));
    auto make = [](std::map<std::string, std::string> options, const char* targets = "") {
        AdaptedModel(test::kBert.load(), AdapterConfig{.method = "unipelt",
                                                       .options = std::move(options),
                                                       .targets = {.modules = targets}});
    };
    EXPECT_FAILS(usage,
                 "--modules: \"lore\" is not known, expected some of lora, prefix, adapter; did you mean",
                 make({{"modules", "lore,prefix"}}));
    EXPECT_FAILS(usage, "--modules: names none", make({{"modules", ""}}));
    EXPECT_FAILS(usage, "--alpha: a gate scales its LoRA", make({{"alpha", "8"}}));
    EXPECT_FAILS(usage, "--gates central: divides between lora and prefix", make({{"gates", "central"}}));
    EXPECT_FAILS(usage, "does not read what attention reads",
                 make({{"gates", "central"}, {"modules", "lora,prefix"}}, "attention"));
    EXPECT_NO_THROW(make({{"gates", "central"}, {"modules", "lora,prefix"}}, "query,key,value"));
    AdaptedModel both(test::kBert.load(), {.method = "unipelt", .also = {{.method = "bottleneck"}}});
    const auto batch = test::kBert.batch();
    EXPECT_FAILS(usage, "two of them insert modules at the same place", both.logits({.batch = batch}));
}

}  // namespace
}  // namespace ether::methods
