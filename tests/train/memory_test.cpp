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
    const auto plain = estimate_memory(model, training, none, false),
               checkpointed = estimate_memory(model, training, none, true);
    EXPECT_LT(checkpointed.activations, plain.activations);
    EXPECT_EQ(checkpointed.trained, plain.trained);
}

TEST(Memory, ProductsWithTheAdaptersMatricesKeepWhatTheyRead) {
    const LargestBatch training{.tokens = 1 << 20, .longest = 128}, none;
    methods::AdaptedModel reflected(test::kLlamaTied.load(), methods::AdapterConfig{.method = "ether+"}),
        low_rank(test::kLlamaTied.load(), methods::AdapterConfig{.method = "lora"});
    EXPECT_LT(estimate_memory(reflected, training, none, false).activations,
              estimate_memory(low_rank, training, none, false).activations);
}

TEST(Memory, TheLargestBatchIsOfTheLongest) {
    const auto batch = largest_batch({3, 9, 1, 7}, 2);
    EXPECT_EQ(batch.tokens, 16);
    EXPECT_EQ(batch.longest, 9);
}

TEST(Memory, ARunThatCannotFitSaysWhatToChange) {
    EXPECT_NO_THROW(check_memory({.trained = 1, .activations = 2}, 3));
    try {
        check_memory({.trained = 1'000'000'000, .activations = 2'500'000'000}, 3'000'000'000);
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
