// RED, the ETHER paper's OFT and LoRTA: the published code's numbers (tests/fixtures/official).
#include <gtest/gtest.h>

#include "ether/methods/adapted_model.h"
#include "ether/methods/targets.h"
#include "fixture_models.h"
#include "io/test_files.h"
#include "methods/official.h"
#include "methods/sites_model.h"

namespace ether::methods {
namespace {

using at::Tensor;
using test::AdaptedSites;
using test::flat;
using test::kOfficial;
using test::near;
using test::tensor_of;

TEST(OfficialRed, OutputMergeAndGradients) {
    const auto json = test::official("tests/fixtures/official/red/layer_all.json");
    const auto& values = json["parameters"];
    AdaptedSites adapted({{"layer", tensor_of(values["weight"]), tensor_of(values["bias"])}}, "red", {});
    const auto scaling = adapted.set("layer.red_scaling", tensor_of(values["activation_scaling"]).flatten()),
               bias = adapted.set("layer.red_bias", tensor_of(values["activation_bias"]).flatten());
    const auto x = tensor_of(json["inputs"]["x"]).requires_grad_(true);
    const auto y = adapted.run(flat(x));
    EXPECT_TRUE(near(y, flat(tensor_of(json["outputs"]["y"])), kOfficial));
    const auto [weight, shifted] = adapted.merged();
    EXPECT_TRUE(near(flat(x).mm(weight.t()) + shifted, y, kOfficial));
    (y * flat(tensor_of(json["inputs"]["cotangent"]))).sum().backward();
    const auto& gradients = json["gradients"];
    EXPECT_TRUE(near(x.grad(), tensor_of(gradients["x"]), kOfficial));
    EXPECT_TRUE(near(scaling.grad(), tensor_of(gradients["activation_scaling"]).flatten(), kOfficial));
    EXPECT_TRUE(near(bias.grad(), tensor_of(gradients["activation_bias"]).flatten(), kOfficial));
}

TEST(OfficialRed, SitesAreTheMlpsOutputs) {
    const auto sites = test::official("tests/fixtures/official/red/sites.json")["outputs"];
    auto chosen = [](const test::FixtureModel& fixture, const std::string& modules) {
        const auto model = fixture.load();
        std::vector<std::string> names;
        for (const auto* site : select({.modules = modules}, *model).sites) names.push_back(site->name());
        return names;
    };
    EXPECT_EQ(nlohmann::json(chosen(test::kLlamaTied, "mlp-output")), sites["llama/ffn"]);
    auto roberta = chosen(test::kFixtureModels.back(), "mlp-output");
    for (auto& name : roberta) name.erase(0, std::string("roberta.").size());
    EXPECT_EQ(nlohmann::json(roberta), sites["roberta/ffn"]);
}

// The ETHER paper's OFT on an input, or ("flip") an output.
class OfficialOft : public testing::TestWithParam<const char*> {};

TEST_P(OfficialOft, OutputMergeAndGradients) {
    const auto json =
        test::official(fmt::format("tests/fixtures/official/oft/linear_oft_{}.json", GetParam()));
    const auto &values = json["parameters"], &config = json["config"];
    AdaptedSites adapted({{"layer", tensor_of(values["weight"]), tensor_of(values["bias"])}}, "oft-paper",
                         {{"blocks", config["n"].dump()},
                          {"side", config["flip_side"] ? "output" : "input"},
                          {"layout", "official"}});
    const auto r = adapted.set("layer.oft_R", tensor_of(values["ether_R"]));
    const auto x = tensor_of(json["inputs"]["x"]).requires_grad_(true);
    const auto y = adapted.run(flat(x));
    EXPECT_TRUE(near(y, flat(tensor_of(json["outputs"]["y"])), kOfficial));
    EXPECT_TRUE(near(adapted.merged().first, tensor_of(json["outputs"]["merged_weight"]), kOfficial));
    (y * flat(tensor_of(json["inputs"]["cotangent"]))).sum().backward();
    EXPECT_TRUE(near(x.grad(), tensor_of(json["gradients"]["x"]), kOfficial));
    EXPECT_TRUE(near(r.grad(), tensor_of(json["gradients"]["ether_R"]), kOfficial));
}

INSTANTIATE_TEST_SUITE_P(Fixtures, OfficialOft,
                         testing::Values("n1_8to12", "n1_8to12_flip", "n2_8to12", "n2_8to12_flip", "n4_8to12",
                                         "n4_8to12_flip"));

class OfficialLorta : public testing::TestWithParam<const char*> {
  protected:
    const nlohmann::json json =
        test::official(std::filesystem::path("tests/fixtures/official/lorta") / GetParam());
    const nlohmann::json& config = json["config"];
    const bool litgpt = config.contains("n_embd");

    // Layer l's q, k, v and o in our order; rows of the fused matrix are ordered by head: q0 k0 v0 q1 ...
    Tensor part(const Tensor& fused, int64_t matrix, int64_t axis) const {
        const int64_t heads = config["n_head"].get<int64_t>(), dim = fused.size(axis) / (3 * heads);
        std::vector<Tensor> rows;
        for (int64_t head = 0; head < heads; ++head)
            rows.push_back(fused.narrow(axis, (3 * head + matrix) * dim, dim));
        return at::cat(rows, axis);
    }
    std::string site(int64_t layer, int64_t matrix) const {
        if (litgpt) return fmt::format("transformer.h.{}.attn.{}", layer, matrix == 3 ? "proj" : "attn");
        const char* names[] = {"q_proj", "k_proj", "v_proj", "o_proj"};
        return fmt::format("model.layers.{}.self_attn.{}", layer, names[matrix]);
    }
    Tensor of_site(const nlohmann::json& array, int64_t matrix, int64_t axis) const {
        const auto value = tensor_of(array);
        return litgpt && matrix < 3 ? part(value, matrix, axis) : value;
    }
};

TEST_P(OfficialLorta, EverySitesOutputAndMerge) {
    const auto heads = config[litgpt ? "n_head" : "heads"].get<int64_t>(),
               hidden = config[litgpt ? "n_embd" : "hidden"].get<int64_t>(),
               layers = config[litgpt ? "n_layer" : "layers"].get<int64_t>();
    std::vector<nn::Linear> linears;
    for (int64_t layer = 0; layer < layers; ++layer)
        for (int64_t matrix = 0; matrix < 4; ++matrix) {
            const auto key = site(layer, matrix) + (litgpt ? ".linear.weight" : ".weight");
            linears.push_back({fmt::format("{}.{}", layer, matrix),
                               of_site(json["parameters"]["base"][key], matrix, 0),
                               {}});
        }
    AdaptedSites adapted(linears, "lorta",
                         {{"rank", std::to_string(config["r"].get<int>())},
                          {"alpha", std::to_string(config[litgpt ? "alpha" : "lora_alpha"].get<int>())},
                          {"rslora", config.value("use_rslora", false) ? "true" : "false"},
                          {"orientation", litgpt ? "output" : "input"},
                          {"layout", litgpt ? "litgpt" : "plain"}},
                         {.hidden_size = hidden,
                          .layers = layers,
                          .heads = heads,
                          .kv_heads = heads,
                          .head_dim = hidden / heads},
                         4);
    for (const char* name : {"A", "B", "C_h", "C_m", "C_l"})
        adapted.set(fmt::format("lorta_{}", name),
                    tensor_of(json["parameters"][fmt::format("lora_{}", name)]));
    for (int64_t layer = 0; layer < layers; ++layer)
        for (int64_t matrix = 0; matrix < 4; ++matrix) {
            const auto index = static_cast<size_t>(4 * layer + matrix);
            const auto& expected = json["outputs"]["sites"][site(layer, matrix)];
            const auto x = flat(tensor_of(expected["x"])), y = flat(of_site(expected["y"], matrix, 2));
            EXPECT_TRUE(near(adapted.run(x, index), y, kOfficial)) << site(layer, matrix) << " " << matrix;
            EXPECT_TRUE(near(x.mm(adapted.merged(index).first.t()), y, kOfficial));
            const auto [a, b] = nn::lora_factors(adapted.forms(index), linears[index].weight);
            EXPECT_EQ(a.size(0), config["r"].get<int64_t>());
        }
}

INSTANTIATE_TEST_SUITE_P(Fixtures, OfficialLorta,
                         testing::Values("lit_joint_all.json", "peft_llama_h2_r3.json",
                                         "peft_llama_h4_r2_rslora.json"),
                         [](const auto& info) {
                             const std::string name = info.param;
                             return name.substr(0, name.find('.'));
                         });

// A Llama made of the fixture's weights, whose first tokens embed as the fixture's inputs.
class OfficialLortaModel : public testing::TestWithParam<const char*> {};

TEST_P(OfficialLortaModel, LogitsAndGradients) {
    const auto json = test::official(std::filesystem::path("tests/fixtures/official/lorta") / GetParam());
    const auto& config = json["config"];
    const auto inputs = flat(tensor_of(json["inputs"]["inputs_embeds"]));
    io::NamedTensors weights;
    for (const auto& [name, value] : json["parameters"]["base"].items())
        weights.emplace_back(name, tensor_of(value));
    const auto logits = flat(tensor_of(json["outputs"]["logits"]));
    const int64_t vocabulary = logits.size(1), tokens = inputs.size(0);
    weights.emplace_back("model.embed_tokens.weight",
                         at::cat({inputs, at::zeros({vocabulary - tokens, inputs.size(1)}, at::kDouble)}));
    const test::TempFolder folder;
    io::write_safetensors(folder / "model.safetensors", weights);
    const nlohmann::json model_config = {{"model_type", "llama"},
                                         {"vocab_size", vocabulary},
                                         {"hidden_size", config["hidden"]},
                                         {"intermediate_size", config["intermediate"]},
                                         {"num_hidden_layers", config["layers"]},
                                         {"num_attention_heads", config["heads"]},
                                         {"rms_norm_eps", config["rms_norm_eps"]},
                                         {"rope_theta", config["rope_theta"]},
                                         {"max_position_embeddings", 16}};
    test::write_raw(folder / "config.json", model_config.dump());
    AdaptedModel adapted(models::load_model(io::Checkpoint::open(folder.path()), {.dtype = at::kDouble}),
                         {.method = "lorta",
                          .options = {{"rank", config["r"].dump()},
                                      {"alpha", config["lora_alpha"].dump()},
                                      {"rslora", config["use_rslora"].dump()},
                                      {"orientation", "input"}}});
    for (const char* name : {"A", "B", "C_h", "C_m", "C_l"})
        adapted.parameters()
            .find(fmt::format("lorta_{}", name))
            ->value.set_data(tensor_of(json["parameters"][fmt::format("lora_{}", name)]));
    data::Sequence sequence;
    for (int64_t token = 0; token < tokens; ++token) sequence.ids.push_back(token);
    const auto batch = data::collate(std::vector{sequence}, std::vector<int64_t>{0}, data::LabelType::none);
    const auto found = adapted.logits({.batch = batch});
    // transformers rounds the rotary positions' cosines to float32.
    EXPECT_TRUE(near(found, logits, 1e-5));
    (found * flat(tensor_of(json["inputs"]["cotangent"]))).sum().backward();
    for (const char* name : {"A", "B", "C_h", "C_m", "C_l"})
        EXPECT_TRUE(near(adapted.parameters().find(fmt::format("lorta_{}", name))->value.grad(),
                         tensor_of(json["gradients"][fmt::format("lora_{}", name)]), 1e-5))
            << name;
}

INSTANTIATE_TEST_SUITE_P(Fixtures, OfficialLortaModel,
                         testing::Values("peft_llama_h2_r3.json", "peft_llama_h4_r2_rslora.json"),
                         [](const auto& info) {
                             const std::string name = info.param;
                             return name.substr(0, name.find('.'));
                         });

TEST(OfficialLortaStart, BoundsAndCount) {
    const auto json = test::official("tests/fixtures/official/lorta/init_bounds.json");
    const auto& config = json["config"];
    const auto hidden = config["hidden"].get<int64_t>(), heads = config["heads"].get<int64_t>(),
               layers = config["layers"].get<int64_t>();
    std::vector<nn::Linear> linears;
    for (int64_t i = 0; i < 4 * layers; ++i)
        linears.push_back(test::shape_only(std::to_string(i), hidden, hidden));
    for (const auto& [key, bounds] : json["outputs"].items()) {
        if (!key.starts_with("init_scale_")) continue;
        AdaptedSites adapted(
            linears, "lorta",
            {{"rank", std::to_string(config["r"].get<int>())}, {"init-scale", key.substr(11)}},
            {.hidden_size = hidden,
             .layers = layers,
             .heads = heads,
             .kv_heads = heads,
             .head_dim = hidden / heads},
            4);
        EXPECT_EQ(adapted.parameters.count(), json["outputs"]["trainable"].get<int64_t>());
        for (const char* name : {"A", "B", "C_h", "C_m", "C_l"}) {
            const auto bound = bounds[fmt::format("lora_{}", name)].get<double>();
            const auto found = test::largest(adapted.parameters.find(fmt::format("lorta_{}", name))->value);
            EXPECT_LE(found, 1.001 * bound) << name;  // the fixture's are the largest of 60 draws
            EXPECT_GE(found, 0.85 * bound) << name;
        }
    }
}

}  // namespace
}  // namespace ether::methods
