// Composition is merging twice, for every pair of changes; weights scale what is added.
#include "ether/nn/compose.h"

#include <gtest/gtest.h>

#include "ether/core/error.h"
#include "ether/nn/site.h"
#include "gradcheck.h"
#include "io/test_files.h"

namespace ether::nn {
namespace {

using at::Tensor;
using test::near;
using test::normal;

constexpr int64_t kIn = 12, kOut = 8;

Rank1 reflection(int64_t width, uint64_t seed) {
    const auto u = normal({1, 2, width / 2}, seed);
    return {u, u, {-0.5}};
}

// One change of each kind, and all of them at once.
std::vector<SiteForms> changes(uint64_t seed) {
    std::vector<SiteForms> all(7);
    all[0].pre = {reflection(kIn, seed)};
    all[1].post = {reflection(kOut, seed + 1)};
    all[2].output = {Scale{normal({kOut}, seed + 2)}};
    all[3].output = {Scale{normal({kOut}, seed + 3)}, Shift{normal({kOut}, seed + 4)}};
    all[4].delta = {{LowRank{normal({3, kIn}, seed + 5), normal({kOut, 3}, seed + 6), 0.7}}};
    all[5].delta = {{BlockDiagonal{normal({2, 6, 3}, seed + 7)}, Permute{at::arange(6).flip(0)},
                     BlockDiagonal{normal({2, 3, 4}, seed + 8)}},
                    {Dense{{normal({kOut, 1}, seed + 9), normal({1, kIn}, seed + 10)},
                           [](const std::vector<Tensor>& of) { return of[0].mm(of[1]); },
                           kOut}}};
    for (const auto& change : all) {
        if (&change == &all.back()) break;
        auto& whole = all.back();
        whole.pre.insert(whole.pre.end(), change.pre.begin(), change.pre.end());
        whole.post.insert(whole.post.end(), change.post.begin(), change.post.end());
        whole.output.insert(whole.output.end(), change.output.begin(), change.output.end());
        whole.delta.insert(whole.delta.end(), change.delta.begin(), change.delta.end());
    }
    return all;
}

TEST(Composed, IsMergingTwice) {
    const auto weight = normal({kOut, kIn}, 1), x = normal({5, kIn}, 3);
    const data::Batch batch;
    for (const auto& bias : {normal({kOut}, 2), Tensor()})
        for (const auto& first : changes(10))
            for (const auto& second : changes(50)) {
                const auto [w, b] = merged(first, weight, bias);
                const auto [expected, shifted] = merged(second, w, b);
                const auto both = composed(first, second, bias);
                const auto found = merged(both, weight, bias);
                EXPECT_TRUE(near(found.first, expected, 1e-12));
                ASSERT_EQ(found.second.defined(), shifted.defined());
                if (shifted.defined()) {
                    EXPECT_TRUE(near(found.second, shifted, 1e-12));
                }
                Site site({"layer", weight, bias}, 0, 0, false);
                site.forms = both;
                auto y = x.mm(expected.t());
                if (shifted.defined()) y = y + shifted;
                EXPECT_TRUE(near(site(x, {.batch = batch}), y, 1e-12));
            }
}

TEST(Composed, DropsWhatEitherDrops) {
    SiteForms first, second;
    first.input_dropout = 0.2, second.input_dropout = 0.5;
    EXPECT_DOUBLE_EQ(composed(first, second, {}).input_dropout, 0.6);
}

TEST(Weighted, ScalesWhatIsAdded) {
    const auto weight = normal({kOut, kIn}, 1);
    const auto all = changes(10);
    for (const size_t kind : {4, 5}) {
        const auto change = merged(all[kind], weight, {}).first - weight;
        EXPECT_TRUE(near(merged(weighted(all[kind], -0.3), weight, {}).first, weight - 0.3 * change, 1e-12));
    }
    for (const size_t kind : {0, 1, 2, 3, 6}) {
        EXPECT_FAILS(adapter, "only additions to a weight or bias can be taken in part",
                     weighted(all[kind], 0.5));
        EXPECT_NO_THROW(weighted(all[kind], 1));
    }
}

}  // namespace
}  // namespace ether::nn
