#include "ether/data/order.h"

#include <gtest/gtest.h>
#include <rapidcheck.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <numeric>

#include "ether/core/random.h"
#include "io/test_files.h"

namespace ether::data {
namespace {

using Ints = std::vector<int64_t>;

Ints flat(const std::vector<BatchRows>& batches) {
    Ints rows;
    for (const BatchRows& batch : batches) rows.insert(rows.end(), batch.begin(), batch.end());
    return rows;
}

bool each_once(Ints rows, size_t count) {
    std::ranges::sort(rows);
    Ints expected(count);
    std::iota(expected.begin(), expected.end(), int64_t{0});
    return rows == expected;
}

struct Case {
    Ints lengths = *rc::gen::scale(3.0, rc::gen::container<Ints>(rc::gen::inRange<int64_t>(1, 600)));
    OrderOptions options{.seed = *rc::gen::arbitrary<uint64_t>(),
                         .batch = *rc::gen::inRange<int64_t>(1, 40),
                         .bucketing = *rc::gen::arbitrary<bool>()};
    int64_t epoch = *rc::gen::inRange<int64_t>(0, 1000);
};

RC_GTEST_PROP(EpochOrder, EveryExampleOnceInFullBatches, ()) {
    const Case c;
    const EpochOrder order(c.lengths, c.options);
    const auto batches = order.epoch(c.epoch);
    RC_ASSERT(each_once(flat(batches), c.lengths.size()));
    RC_ASSERT(static_cast<int64_t>(batches.size()) == order.batches_per_epoch());
    for (size_t i = 0; i + 1 < batches.size(); ++i)
        RC_ASSERT(static_cast<int64_t>(batches[i].size()) == c.options.batch);
    if (!batches.empty()) RC_ASSERT(!batches.back().empty());
}

RC_GTEST_PROP(EpochOrder, SameSeedSameOrder, ()) {
    const Case c;
    const EpochOrder order(c.lengths, c.options);
    RC_ASSERT(order.epoch(c.epoch) == EpochOrder(c.lengths, c.options).epoch(c.epoch));
    // Bucketing may leave as little to chance as the order of two batches; that sixty orders are the same has
    // 2^-60.
    RC_PRE(c.lengths.size() >= 20u && order.batches_per_epoch() > 1);
    bool epochs_differ = false, seeds_differ = false;
    const auto first = flat(order.epoch(c.epoch));
    for (uint64_t i = 1; i <= 60; ++i) {
        epochs_differ |= first != flat(order.epoch(c.epoch + static_cast<int64_t>(i)));
        OrderOptions other = c.options;
        other.seed ^= i;
        seeds_differ |= first != flat(EpochOrder(c.lengths, other).epoch(c.epoch));
    }
    RC_ASSERT(epochs_differ);
    RC_ASSERT(seeds_differ);
}

RC_GTEST_PROP(EvaluationOrder, LongestFirstEachOnce, ()) {
    const Case c;
    const Ints rows = flat(evaluation_order(c.lengths, c.options.batch));
    RC_ASSERT(each_once(rows, c.lengths.size()));
    for (size_t i = 1; i < rows.size(); ++i) {
        const auto before = static_cast<size_t>(rows[i - 1]), after = static_cast<size_t>(rows[i]);
        RC_ASSERT(c.lengths[before] > c.lengths[after] ||
                  (c.lengths[before] == c.lengths[after] && before < after));
    }
}

TEST(EpochOrder, BucketsByLength) {
    Ints lengths(10'000);
    const Random random(3);
    for (size_t i = 0; i < lengths.size(); ++i) lengths[i] = 1 + static_cast<int64_t>(random.below(i, 500));
    const auto spread = [&](bool bucketing) {  // mean over batches of the longest minus the shortest
        double sum = 0;
        const auto batches = EpochOrder(lengths, {.seed = 1, .batch = 16, .bucketing = bucketing}).epoch(0);
        for (const BatchRows& batch : batches) {
            const auto by_length = [&](int64_t a, int64_t b) {
                return lengths[static_cast<size_t>(a)] < lengths[static_cast<size_t>(b)];
            };
            const auto [low, high] = std::ranges::minmax_element(batch, by_length);
            sum +=
                static_cast<double>(lengths[static_cast<size_t>(*high)] - lengths[static_cast<size_t>(*low)]);
        }
        return sum / static_cast<double>(batches.size());
    };
    EXPECT_GT(spread(false), 400);
    EXPECT_LT(spread(true), 50);  // about 500 / 20, and more in the last pool
}

TEST(EpochOrder, BatchesDoNotGrowOverAPool) {
    Ints lengths(320);
    std::iota(lengths.begin(), lengths.end(), int64_t{1});
    const auto batches = EpochOrder(lengths, {.seed = 1, .batch = 16}).epoch(0);
    Ints first;
    for (const BatchRows& batch : batches) first.push_back(lengths[static_cast<size_t>(batch[0])]);
    EXPECT_FALSE(std::ranges::is_sorted(first));
}

TEST(EpochOrder, SmallAndBadSizes) {
    EXPECT_TRUE(EpochOrder({}, {}).epoch(0).empty());
    EXPECT_EQ(EpochOrder({}, {}).batches_per_epoch(), 0);
    EXPECT_EQ(EpochOrder({5, 5}, {.batch = INT64_MAX}).epoch(0).size(), 1u);
    EXPECT_EQ(EpochOrder({5, 5}, {.batch = INT64_MAX}).batches_per_epoch(), 1);
    EXPECT_FAILS(usage, "batch size: expected 1 or more, found 0", EpochOrder({1}, {.batch = 0}));
    EXPECT_FAILS(usage, "batch size: expected 1 or more, found -3", evaluation_order(Ints{1}, -3));
}

}  // namespace
}  // namespace ether::data
