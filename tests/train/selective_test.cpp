// Selective methods: which weights are chosen and what training makes of them, as the published code does
// (numbers in tests/fixtures/official/pafi, id3), and what their state and files weigh.
#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <numeric>

#include "ether/methods/selected_weights.h"
#include "ether/train/optimizer.h"
#include "io/test_files.h"
#include "methods/official.h"
#include "methods/sites_model.h"

namespace ether::train {
namespace {

using at::Tensor;
using test::AdaptedSites;
using test::near;
using test::tensor_of;

// The fixture's tensors as weights of layers, in its order; a vector is one row.
std::vector<nn::Linear> layers(const nlohmann::json& json) {
    std::vector<nn::Linear> linears;
    for (const auto& name : json["config"]["parameter_order"]) {
        auto weight = tensor_of(json["parameters"][name]);
        if (weight.dim() == 1) weight = weight.unsqueeze(0);
        linears.push_back({name, weight, {}});
    }
    return linears;
}

std::vector<int64_t> chosen(const AdaptedSites& adapted, const char* indices) {
    std::vector<int64_t> places;
    const auto& all = adapted.parameters.find(indices)->value;
    for (int64_t k = 0; k < all.numel(); ++k)
        if (all[k].item<int64_t>() >= 0) places.push_back(all[k].item<int64_t>());
    std::sort(places.begin(), places.end());
    return places;
}

std::vector<int64_t> official_pafi(const char* name) {
    const auto json = test::official(fmt::format("tests/fixtures/official/pafi/{}.json", name));
    const AdaptedSites adapted(layers(json), "pafi", {{"budget", json["config"]["budget"].dump()}});
    return chosen(adapted, "pafi_indices");
}

TEST(OfficialPafi, TheSmallestWeightsAreChosen) {
    const auto json = test::official("tests/fixtures/official/pafi/plain_b7.json");
    EXPECT_EQ(nlohmann::json(official_pafi("plain_b7")), json["outputs"]["chosen_flat"]);
}

// The published code lets the first ones at the cutoff displace smaller ones behind them.
TEST(OfficialPafi, TiesDisplaceNothingSmaller) {
    EXPECT_EQ(official_pafi("ties_b3"), (std::vector<int64_t>{0, 6, 7}));
}

class OfficialId3 : public testing::TestWithParam<const char*> {};

// Each step's choice, and the weights after it.
TEST_P(OfficialId3, StepsAgree) {
    const auto json = test::official(fmt::format("tests/fixtures/official/id3/{}.json", GetParam()));
    const auto &config = json["config"], &outputs = json["outputs"];
    const auto linears = layers(json);
    AdaptedSites adapted(
        linears, "id3",
        {{"budget", config["budget"].dump()}, {"exp", config["exp"].dump()}, {"eps", config["eps"].dump()}});
    const auto values = adapted.set("id3_values", at::zeros({config["budget"].get<int64_t>()}, at::kDouble));
    const bool adamw = config["base_optimizer"] == "AdamW";
    const double lr = config["base_options"]["lr"];
    AdamW optimizer({{"id3_values", values, lr, 0.0}});
    const auto total = config["max_steps"].get<int64_t>();
    for (int64_t step = 0; step < total; ++step) {
        const auto& given = json["inputs"]["gradients_per_step"][static_cast<size_t>(step)];
        std::vector<Tensor> gradients;
        for (size_t i = 0; i < linears.size(); ++i) {
            gradients.push_back(tensor_of(given[linears[i].name]).view(linears[i].weight.sizes()));
            auto& site = adapted.model.sites()[i];
            EXPECT_TRUE(adapted.adapter->wants_weight_grad(site));
            adapted.adapter->weight_grad(site, gradients.back());
        }
        // What the chosen entries' own graph gives them.
        auto& gradient = values.mutable_grad() = at::zeros_like(values);
        std::vector<Tensor> flat;
        for (const auto& g : gradients) flat.push_back(g.flatten());
        const auto all = at::cat(flat);
        const auto& places = adapted.parameters.find("id3_indices")->value;
        for (int64_t k = 0; k < places.numel(); ++k)
            if (const auto place = places[k].item<int64_t>(); place >= 0) gradient[k] = all[place];
        adapted.adapter->after_backward({step, total});
        if (adamw)
            optimizer.step(1.0);
        else
            values.data().sub_(lr * gradient);

        std::vector<int64_t> mask;
        for (size_t i = 0; i < linears.size(); ++i) {
            const auto& name = linears[i].name;
            const auto expected = tensor_of(outputs["values_after_step"][static_cast<size_t>(step)][name])
                                      .view(linears[i].weight.sizes());
            EXPECT_TRUE(near(adapted.merged(i).first, expected, test::kOfficial)) << step << " " << name;
            for (const auto& bit : outputs["masks"][static_cast<size_t>(step)][name]["data"])
                mask.push_back(bit.get<int64_t>());
        }
        std::vector<int64_t> expected;
        for (size_t place = 0; place < mask.size(); ++place)
            if (mask[place]) expected.push_back(static_cast<int64_t>(place));
        EXPECT_EQ(chosen(adapted, "id3_indices"), expected) << step;
    }
    EXPECT_FALSE(adapted.adapter->wants_weight_grad(adapted.model.sites().front()));
}

INSTANTIATE_TEST_SUITE_P(Fixtures, OfficialId3,
                         testing::Values("exp0_sgd", "exp05_sgd", "exp1_sgd", "exp0_adamw_wd0"));

AdaptedSites id3(const std::vector<nn::Linear>& linears, int64_t budget, int64_t steps) {
    return {linears, "id3", {{"budget", std::to_string(budget)}, {"unmask-steps", std::to_string(steps)}}};
}

// The budget is exact and used up by step T, whatever the scores are: equal ones, fewer entries than steps.
TEST(Id3, KeepsToItsBudget) {
    EXPECT_TRUE(rc::check([] {
        const int64_t total = *rc::gen::inRange(1, 9), budget = *rc::gen::inRange(1, 25);
        auto adapted =
            id3({{"a", test::normal({3, 4}, 1), {}}, {"b", test::normal({2, 6}, 2), {}}}, budget, total);
        for (int64_t step = 0; step < total + 2; ++step) {
            for (auto& site : adapted.model.sites())
                if (adapted.adapter->wants_weight_grad(site))
                    adapted.adapter->weight_grad(site, at::tensor(*rc::gen::container<std::vector<double>>(
                                                                      12, rc::gen::element(0.0, 1.0, -1.0)))
                                                           .view(site.linear.weight.sizes()));
            adapted.adapter->after_backward({step, total});
            const auto done = std::min(step + 1, total);
            const auto places = chosen(adapted, "id3_indices");
            RC_ASSERT(static_cast<int64_t>(places.size()) ==
                      budget / total * done + std::min(budget % total, done));
            RC_ASSERT(std::adjacent_find(places.begin(), places.end()) == places.end());
        }
    }));
}

TEST(Id3, StartsAsTheBaseAndRefusesGradientsInPieces) {
    const nn::Linear linear{"layer", test::normal({3, 4}, 1), {}};
    auto adapted = id3({linear}, 5, 2);
    const auto x = test::normal({7, 4}, 3);
    EXPECT_TRUE(at::equal(adapted.run(x), x.mm(linear.weight.t())));
    EXPECT_NO_THROW(adapted.adapter->check_run({.steps = 3}));
    EXPECT_FAILS(usage, "use --accumulate 1", adapted.adapter->check_run({.steps = 3, .accumulate = 2}));
}

// An adapter that is trained on has some of its budget left, or none, and T may be more than the run's steps.
TEST(Id3, DividesWhatIsLeftOfItsBudget) {
    for (const int64_t begun : {0, 4, 7}) {
        auto adapted = id3({{"layer", test::normal({3, 4}, 1), {}}}, 7, 100);
        auto indices = at::full({7}, -1, at::kLong);
        indices.narrow(0, 0, begun).copy_(at::arange(begun));
        adapted.set("id3_indices", indices);
        auto& site = adapted.model.sites().front();
        for (int64_t step = 0; step < 3; ++step) {
            EXPECT_EQ(adapted.adapter->wants_weight_grad(site), chosen(adapted, "id3_indices").size() < 7);
            if (adapted.adapter->wants_weight_grad(site))
                adapted.adapter->weight_grad(site, test::normal({3, 4}, 10 + static_cast<uint64_t>(step)));
            adapted.adapter->after_backward({step, 3});
        }
        EXPECT_EQ(chosen(adapted, "id3_indices").size(), 7) << begun;
    }
}

TEST(SelectedWeights, BudgetsAreNumbersOrShares) {
    const nn::Linear linear{"layer", test::normal({30, 40}, 1), {}};
    EXPECT_EQ(AdaptedSites({linear}, "pafi", {{"budget", "0.01"}}).parameters.count(), 12);
    EXPECT_EQ(AdaptedSites({linear}, "pafi", {{"budget", "1200"}}).parameters.count(), 1200);
    EXPECT_FAILS(usage, "means 0 of the 1200 weights", AdaptedSites({linear}, "pafi", {{"budget", "1e-9"}}));
    EXPECT_FAILS(usage, "means 1201 of the 1200 weights",
                 AdaptedSites({linear}, "pafi", {{"budget", "1201"}}));
}

TEST(SelectedWeights, IndicesOfAFileAreChecked) {
    const nn::Linear linear{"layer", test::normal({3, 4}, 1), {}};
    for (const auto& indices : {std::vector<int64_t>{0, 12}, {3, 3}, {-1, 3}, {-7, -1}}) {
        AdaptedSites adapted({linear}, "pafi", {{"budget", "2"}});
        adapted.set("pafi_indices", at::tensor(indices, at::kLong));
        if (indices.front() == -7)
            EXPECT_NO_THROW(adapted.forms());  // no entry in use
        else
            EXPECT_FAILS(adapter, "the adapter's indices hold", adapted.forms());
    }
}

// The best of a stream are the best of all of it at once, by score and then by place.
TEST(BestEntries, EqualsASort) {
    EXPECT_TRUE(rc::check([] {
        const auto count = *rc::gen::inRange<int64_t>(0, 30);
        const auto scores = *rc::gen::container<std::vector<double>>(
            60, rc::gen::map(rc::gen::inRange(0, 20), [](int i) {
                return i == 19 ? -INFINITY : i == 18 ? NAN : static_cast<double>(i);
            }));
        methods::BestEntries best(count);
        for (int64_t first = 0; first < 60; first += 20)
            best.add(at::tensor(std::vector<double>(scores.begin() + first, scores.begin() + first + 20)),
                     first);
        std::vector<int64_t> expected(60);
        std::iota(expected.begin(), expected.end(), 0);
        std::erase_if(expected, [&](int64_t i) { return !std::isfinite(scores[static_cast<size_t>(i)]); });
        std::stable_sort(expected.begin(), expected.end(), [&](int64_t a, int64_t b) {
            return scores[static_cast<size_t>(a)] > scores[static_cast<size_t>(b)];
        });
        expected.resize(std::min(expected.size(), static_cast<size_t>(count)));
        std::vector<int64_t> found;
        for (const auto& entry : best.best(count)) found.push_back(entry.place);
        RC_ASSERT(found == expected);
    }));
}

}  // namespace
}  // namespace ether::train
