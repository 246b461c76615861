// AdaLoRA's schedule and regulariser beside PEFT's (tests/fixtures/peft/adalora_schedule.safetensors).
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "ether/io/safetensors.h"
#include "io/test_files.h"
#include "methods/sites_model.h"

namespace ether::methods {
namespace {

using test::AdaptedSites;
using test::near;
using test::normal;

TEST(Adalora, LeavesTheTripletsThatPeftLeaves) {
    const io::SafetensorsFile peft("tests/fixtures/peft/adalora_schedule.safetensors");
    AdaptedSites adapted({{"0", normal({6, 4}, 1), {}}, {"1", normal({3, 6}, 2), {}}}, "adalora",
                         {{"rank", "5"},
                          {"target-rank", "2"},
                          {"tinit", "2"},
                          {"tfinal", "3"},
                          {"delta-t", "2"},
                          {"beta1", "0.8"},
                          {"beta2", "0.7"}});
    for (const auto& parameter : adapted.parameters.all())
        adapted.set(parameter.name, parameter.trained ? peft.tensor("start/" + parameter.name)
                                                      : parameter.value.to(at::kDouble));
    for (int64_t step = 1; step <= 12; ++step) {
        for (const auto& parameter : adapted.parameters.trained()) {
            const auto gradient = peft.tensor(fmt::format("{}/gradient/{}", step, parameter.name));
            parameter.value.data().sub_(gradient, 0.05);
            parameter.value.mutable_grad() = 4 * gradient;  // before clipping
        }
        adapted.adapter->after_update({.step = step, .total = 12, .gradient_scale = 0.25});
        for (const char* name : {"0.lora_E", "1.lora_E"})
            EXPECT_TRUE(near(adapted.parameters.find(name)->value,
                             peft.tensor(fmt::format("{}/left/{}", step, name)), 1e-14))
                << step << " " << name;
    }
    EXPECT_TRUE(near(adapted.adapter->extra_loss({}), peft.tensor("extra_loss"), 1e-14));
}

TEST(Adalora, AFileHoldsWhatIsLeft) {
    AdaptedSites adapted({{"0", normal({6, 4}, 1), {}}}, "adalora", {{"rank", "3"}});
    adapted.set("0.lora_E", at::tensor({1., 0., 0.}).view({3, 1}));
    adapted.set("0.lora_kept", at::tensor({1., 0., 1.}).view({3, 1}));
    io::NamedTensors tensors;
    for (const auto& parameter : adapted.parameters.trained())
        tensors.emplace_back(parameter.name, parameter.value);
    adapted.adapter->to_tensors(tensors);
    EXPECT_EQ(tensors[0].second.sizes(), (at::IntArrayRef{2, 4}));
    EXPECT_EQ(tensors[1].second.sizes(), (at::IntArrayRef{2, 1}));
    EXPECT_EQ(tensors[2].second.sizes(), (at::IntArrayRef{6, 2}));
    nlohmann::json config;
    adapted.adapter->to_config(config);
    EXPECT_EQ(config["rank_pattern"]["0.lora_E"], nlohmann::json({true, false, true}));
}

TEST(Adalora, AScheduleWithoutRoomIsRefused) {
    AdaptedSites adapted({{"0", normal({6, 4}, 1), {}}}, "adalora", {{"tinit", "5"}, {"tfinal", "5"}});
    EXPECT_FAILS(usage, "leave none of the 10 steps", adapted.adapter->check_run({.steps = 10}));
}

TEST(Adalora, ARankThatNothingIsTakenFromIsRefused) {
    AdaptedSites adapted({{"0", normal({6, 4}, 1), {}}}, "adalora", {{"rank", "4"}, {"target-rank", "4"}});
    EXPECT_FAILS(usage, "--target-rank: 4 leaves all of --rank 4's triplets",
                 adapted.adapter->check_run({.steps = 10}));
}

}  // namespace
}  // namespace ether::methods
