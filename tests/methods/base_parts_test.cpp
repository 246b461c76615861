// Methods that train parts of the base as they are, or what takes their place: BitFit, LN-tuning, HiWi.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "ether/methods/adapted_model.h"
#include "fixture_models.h"
#include "io/test_files.h"
#include "methods/sites_model.h"

namespace ether::methods {
namespace {

using test::near;
using test::normal;

TEST(Bitfit, TrainsTheBiasesAndNothingElse) {
    const AdaptedModel adapted(test::kBert.load(), AdapterConfig{.method = "bitfit"});
    const auto base = test::kBert.load();
    int64_t biases = 0;
    for (const auto& [name, slots] : base->tensors())
        if (name.ends_with(".bias")) biases += slots.front()->numel();
    EXPECT_EQ(adapted.method_parameters() + adapted.parameters().count(nn::ParameterGroup::head), biases);
    for (const auto& parameter : adapted.parameters().all()) EXPECT_TRUE(parameter.name.ends_with(".bias"));
    EXPECT_FAILS(usage, "this llama model has no biases",
                 AdaptedModel(test::kLlamaTied.load(), AdapterConfig{.method = "bitfit"}));
}

TEST(LnTuning, TrainsTheNormsThatAreNamed) {
    auto make = [](const std::string& norms) {
        return AdaptedModel(test::kLlamaTied.load(),
                            AdapterConfig{.method = "ln-tuning", .options = {{"norms", norms}}});
    };
    EXPECT_EQ(make("").method_parameters(), 5 * 32);
    EXPECT_EQ(make("input_layernorm").method_parameters(), 2 * 32);
    EXPECT_EQ(make("norm").files("base").config["target_modules"], nlohmann::json({"model.norm"}));
    EXPECT_FAILS(usage, "--norms: no norm is named \"layernorm\"", make("layernorm"));
}

TEST(Hiwi, MovesABiasByItsNetwork) {
    const nn::Linear linear{"layer", normal({6, 4}, 1), normal({6}, 2)};
    test::AdaptedSites adapted({linear}, "hiwi", {{"rank", "3"}, {"scale", "0.5"}});
    adapted.randomise(5);
    const auto down = adapted.parameters.find("layer.hiwi_D")->value.detach(),
               up = adapted.parameters.find("layer.hiwi_U")->value.detach();
    const auto expected = linear.bias + 0.5 * at::matmul(at::matmul(linear.bias, down).clamp_min(0), up);
    EXPECT_TRUE(near(adapted.merged().second, expected, 1e-14));
    // A file holds the new bias alone.
    io::NamedTensors tensors;
    adapted.adapter->to_tensors(tensors);
    ASSERT_EQ(tensors.size(), 1U);
    EXPECT_EQ(tensors[0].first, "layer.hiwi_bias");
    EXPECT_TRUE(near(tensors[0].second, expected, 1e-14));
}

TEST(Hiwi, MovesAWeightByItsNetwork) {
    const nn::Linear linear{"layer", normal({6, 4}, 1), at::Tensor()};
    test::AdaptedSites adapted({linear}, "hiwi", {{"on", "weight"}, {"rank", "3"}, {"scale", "0.5"}});
    EXPECT_TRUE(near(adapted.merged().first, linear.weight, 0));
    adapted.randomise(5);
    const auto down = adapted.parameters.find("layer.hiwi_D")->value.detach(),
               up = adapted.parameters.find("layer.hiwi_U")->value.detach();
    const auto change = 0.5 * at::matmul(at::matmul(linear.weight, down).clamp_min(0), up);
    EXPECT_TRUE(near(adapted.merged().first, linear.weight + change, 1e-14));
    // A file holds the change's factors.
    io::NamedTensors tensors;
    adapted.adapter->to_tensors(tensors);
    ASSERT_EQ(tensors.size(), 2U);
    EXPECT_TRUE(near(at::matmul(tensors[1].second, tensors[0].second), change, 1e-14));
}

TEST(Hiwi, NeedsABiasThatIsNotZero) {
    for (const auto& [bias, state] : {std::pair{at::Tensor(), "missing"}, {at::zeros({6}), "zero"}})
        EXPECT_FAILS(usage, fmt::format("layer: this layer's bias, on which hiwi acts, is {}", state),
                     test::AdaptedSites({{"layer", normal({6, 4}, 1), bias}}, "hiwi", {}));
}

}  // namespace
}  // namespace ether::methods
