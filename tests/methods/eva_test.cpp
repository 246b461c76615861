// EVA: directions in which layers' inputs vary, and the ranks that go by them.
#include "ether/methods/eva.h"

#include <ATen/Functions.h>
#include <gtest/gtest.h>

#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "ether/methods/adapted_model.h"
#include "fixture_models.h"
#include "io/test_files.h"

namespace ether::methods {
namespace {

using at::Tensor;
using test::near;

// All of the fixture's rows, each time.
RunBatch all_rows(const test::FixtureModel& fixture) {
    return [batch = fixture.batch()](const nn::Model& model) {
        const at::NoGradGuard no_grad;
        model.logits({.batch = batch});
    };
}

AdapterConfig eva(std::map<std::string, std::string> options = {}) {
    options["init-lora-weights"] = "eva";
    return {.method = "lora", .options = std::move(options), .seed = 1};
}

struct Principal {
    Tensor directions, singular;
    std::vector<double> shares;
};

// The principal directions of what each site reads of all rows.
std::map<std::string, Principal> exact(const test::FixtureModel& fixture) {
    const auto model = fixture.load();
    std::map<std::string, Principal> result;
    for (auto& site : model->sites())
        site.watch = [&result, &site](const Tensor& x) {
            const auto centred = (x - x.mean(0)).to(at::kDouble);
            const auto [u, s, vh] = at::linalg_svd(centred, /*full_matrices=*/false);
            auto& principal = result[site.name()];
            principal.directions = vh;
            principal.singular = s;
            const auto shares = s.square() / s.square().sum();
            for (int64_t i = 0; i < shares.numel(); ++i) principal.shares.push_back(shares[i].item<double>());
        };
    all_rows(fixture)(*model);
    return result;
}

class Eva : public testing::TestWithParam<test::FixtureModel> {};

TEST_P(Eva, StartsInTheDirectionsThatVaryMost) {
    const auto& fixture = GetParam();
    const auto principal = exact(fixture);
    for (const bool whiten : {false, true}) {
        AdaptedModel adapted(
            fixture.load(), eva({{"rank", "2"}, {"eva-rho", "1"}, {"eva-whiten", whiten ? "true" : "false"}}),
            all_rows(fixture));
        ASSERT_FALSE(adapted.sites().empty());
        for (const nn::Site* site : adapted.sites()) {
            const auto a = adapted.parameters().find(site->name() + ".lora_A.weight")->value.to(at::kDouble);
            const auto& [directions, singular, shares] = principal.at(site->name());
            ASSERT_EQ(a.size(0), 2) << site->name();
            const auto found = a.mm(directions.narrow(0, 0, 2).t()).abs();
            // Each batch is as the one before: the same directions, of a singular value that grows.
            if (!whiten) {
                EXPECT_TRUE(near(found, at::eye(2, at::kDouble), 2e-3)) << site->name() << found;
            }
            EXPECT_TRUE(near(found / found.diagonal().unsqueeze(1), at::eye(2, at::kDouble), 5e-3));
            if (whiten) {
                EXPECT_NEAR((found[0][0] / found[1][1]).item<double>(),
                            std::sqrt(singular[1].item<double>() / singular[0].item<double>()), 1e-3);
            }
            EXPECT_GT(a[0].gather(0, a[0].abs().argmax(0, true)).item<double>(), 0);
        }
    }
}

TEST_P(Eva, GivesRankToTheLayersWhereItExplainsMost) {
    const auto& fixture = GetParam();
    const auto principal = exact(fixture);
    constexpr int64_t kRank = 2;
    AdaptedModel adapted(
        fixture.load(),
        eva({{"rank", "2"}, {"alpha", "6"}, {"bias", fixture.classifies() ? "lora_only" : "none"}}),
        all_rows(fixture));
    std::vector<double> taken, left;
    int64_t total = 0;
    std::set<std::string> ranked;
    for (const nn::Site* site : adapted.sites()) {
        const auto* a = adapted.parameters().find(site->name() + ".lora_A.weight");
        const int64_t rank = a ? a->value.size(0) : 0;
        if (a) ranked.insert(site->name());
        EXPECT_LE(rank, 2 * kRank);
        total += rank;
        const auto& shares = principal.at(site->name()).shares;
        for (int64_t i = 0; i < std::min<int64_t>(2 * kRank, static_cast<int64_t>(shares.size())); ++i)
            (i < rank ? taken : left).push_back(shares[static_cast<size_t>(i)]);
    }
    EXPECT_EQ(total, kRank * static_cast<int64_t>(adapted.sites().size()));
    EXPECT_GE(*std::min_element(taken.begin(), taken.end()) + 1e-4,
              *std::max_element(left.begin(), left.end()));

    // A file that holds the layers with their ranks, and alphas in proportion.
    const at::NoGradGuard no_grad;
    for (const auto& parameter : adapted.parameters().trained()) parameter.value.mul_(1.2).add_(0.03);
    const auto files = adapted.files("base");
    EXPECT_EQ(files.config["init_lora_weights"], true);
    EXPECT_FALSE(files.config.contains("eva_rho"));
    const auto targets = files.config["target_modules"].get<std::set<std::string>>();
    EXPECT_EQ(targets, ranked);
    for (const auto& name : targets) {
        const double rank = files.config["rank_pattern"].value(name, kRank),
                     alpha = files.config["alpha_pattern"].value(name, 6.0);
        EXPECT_EQ(alpha / rank, 3.0) << name;
    }
    const auto batch = fixture.batch();
    const auto expected = adapted.logits({.batch = batch});
    AdaptedModel again(fixture.load(), files);
    EXPECT_TRUE(near(again.logits({.batch = batch}), expected, 1e-6));
    EXPECT_FALSE(near(fixture.load()->logits({.batch = batch}), expected, 1e-2));
}

INSTANTIATE_TEST_SUITE_P(Models, Eva, testing::Values(test::kBert, test::kLlamaTied),
                         [](const auto& info) { return info.param.name; });

// Batches of few rows are gathered until there are as many as directions.
TEST(EvaBatches, FewRowsAreGathered) {
    int64_t batches = 0;
    const auto sequences = test::kBert.sequences();
    AdaptedModel adapted(test::kBert.load(), eva({{"rank", "3"}, {"eva-rho", "1"}}),
                         [&](const nn::Model& model) {
                             const at::NoGradGuard no_grad;
                             const std::vector<int64_t> row = {batches++ % 4};
                             model.logits({.batch = data::collate(sequences, row, data::LabelType::index)});
                         });
    // The pooler reads one token of a text.
    EXPECT_GE(batches, 7);
    EXPECT_EQ(adapted.parameters().find("bert.pooler.dense.lora_A.weight")->value.size(0), 3);
    for (const auto& site : adapted.model().sites()) EXPECT_FALSE(site.watch);
}

TEST(EvaBatches, WithoutDataIsAnError) {
    EXPECT_FAILS(usage, "use it with ether train", AdaptedModel(test::kBert.load(), eva()));
}

}  // namespace
}  // namespace ether::methods
