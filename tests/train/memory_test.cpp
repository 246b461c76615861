// The memory estimate: what it grows with, and the words of a run that cannot fit.
#include "ether/train/memory.h"

#include <gtest/gtest.h>

#include "ether/core/error.h"
#include "fixture_models.h"

namespace ether::train {
namespace {

TEST(Memory, CheckpointedActivationsNeedLess) {
    methods::AdaptedModel model(test::kLlamaTied.load(), methods::AdapterConfig{.method = "ether+"});
    const LargestBatch training{.tokens = 1 << 20, .longest = 128}, none;
    const auto estimate = estimate_memory(model, training, none);
    ASSERT_GT(estimate.blocks, 1);
    for (int64_t blocks = 1; blocks < estimate.blocks; ++blocks)
        EXPECT_LT(estimate.activations(blocks + 1), estimate.activations(blocks));
    EXPECT_LT(estimate.activations(estimate.blocks), estimate.activations(0));
}

TEST(Memory, ProductsWithTheAdaptersMatricesKeepWhatTheyRead) {
    const LargestBatch training{.tokens = 1 << 20, .longest = 128}, none;
    methods::AdaptedModel reflected(test::kLlamaTied.load(), methods::AdapterConfig{.method = "ether+"}),
        low_rank(test::kLlamaTied.load(), methods::AdapterConfig{.method = "lora"});
    EXPECT_LT(estimate_memory(reflected, training, none).activations(0),
              estimate_memory(low_rank, training, none).activations(0));
}

TEST(Memory, AsFewBlocksAsItTakesAreCheckpointed) {
    const MemoryEstimate estimate{
        .trained = 10, .blocks = 8, .block = 100, .checkpoint = 10, .rest = 5, .evaluation = 50};
    EXPECT_EQ(estimate.total(0), 815);
    EXPECT_EQ(estimate.total(3), 15 + 5 * 100 + 3 * 10 + 150);
    EXPECT_EQ(estimate.total(8), 245);
    EXPECT_EQ(estimate.blocks_to_checkpoint(815), 0);
    // The first one to be run again needs room for that, so it takes two to save anything.
    EXPECT_EQ(estimate.blocks_to_checkpoint(814), 2);
    EXPECT_EQ(estimate.blocks_to_checkpoint(695), 3);
    EXPECT_EQ(estimate.blocks_to_checkpoint(100), 8);
}

TEST(Memory, TheLargestBatchIsOfTheLongest) {
    const auto batch = largest_batch({3, 9, 1, 7}, 2);
    EXPECT_EQ(batch.tokens, 16);
    EXPECT_EQ(batch.longest, 9);
}

TEST(Memory, ARunThatCannotFitSaysWhatToChange) {
    EXPECT_NO_THROW(check_memory({.trained = 1, .rest = 2}, 0, 3));
    try {
        check_memory({.trained = 1'000'000'000, .rest = 2'500'000'000}, 0, 3'000'000'000);
        FAIL();
    } catch (const Error& error) {
        EXPECT_EQ(error.kind(), ErrorKind::memory);
        const std::string words = error.what();
        for (const char* part : {"3.5 GB", "3.0 GB are free", "--batch"})
            EXPECT_NE(words.find(part), std::string::npos) << words;
    }
}

}  // namespace
}  // namespace ether::train
