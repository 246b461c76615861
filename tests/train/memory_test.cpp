// The memory estimate: what it grows with, and the words of a run that cannot fit.
#include "ether/train/memory_mode.h"

#include <gtest/gtest.h>

#include "ether/core/error.h"
#include "fixture_models.h"
#include "io/test_files.h"

namespace ether::train {
namespace {

TEST(Memory, CheckpointedActivationsNeedLess) {
    methods::AdaptedModel model(test::kLlamaTied.load(), methods::AdapterConfig{.method = "ether+"});
    const LargestBatch training{.tokens = 1 << 20, .longest = 128};
    const auto estimate = estimate_memory(model, training);
    ASSERT_GT(estimate.blocks, 1);
    for (int64_t blocks = 1; blocks < estimate.blocks; ++blocks)
        EXPECT_LT(estimate.activations(blocks + 1), estimate.activations(blocks));
    EXPECT_LT(estimate.activations(estimate.blocks), estimate.activations(0));
}

TEST(Memory, ProductsWithTheAdaptersMatricesKeepWhatTheyRead) {
    const LargestBatch training{.tokens = 1 << 20, .longest = 128};
    methods::AdaptedModel reflected(test::kLlamaTied.load(), methods::AdapterConfig{.method = "ether+"}),
        low_rank(test::kLlamaTied.load(), methods::AdapterConfig{.method = "lora"});
    EXPECT_LT(estimate_memory(reflected, training).activations(0),
              estimate_memory(low_rank, training).activations(0));
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

TEST(Memory, TheFastestModeThatFitsIsChosen) {
    const MemoryEstimate at_once{.blocks = 8, .block = 100, .checkpoint = 10, .rest = 5},
        in_pieces{.blocks = 8, .block = 50, .checkpoint = 5, .rest = 5};
    const auto mode = [&](int64_t available, BlockRange blocks, bool pieces = true) {
        const auto chosen = fastest_that_fits(at_once, pieces ? std::optional(in_pieces) : std::nullopt, 256,
                                              blocks, available);
        return std::pair(chosen.piece_tokens, chosen.checkpointed_blocks);
    };
    using Mode = std::pair<int64_t, int64_t>;
    EXPECT_EQ(mode(805, {0, 8}), Mode(0, 0));
    EXPECT_EQ(mode(804, {0, 8}), Mode(256, 0));
    EXPECT_EQ(mode(405, {0, 8}), Mode(256, 0));
    EXPECT_EQ(mode(404, {0, 8}), Mode(256, 2));
    EXPECT_EQ(mode(100, {0, 0}), Mode(256, 0));       // no block can be run again
    EXPECT_EQ(mode(804, {0, 8}, false), Mode(0, 2));  // batches do not pass in pieces
    EXPECT_EQ(mode(235, {8, 8}), Mode(0, 8));         // all blocks are wanted so
    EXPECT_EQ(mode(234, {8, 8}), Mode(256, 8));
    EXPECT_EQ(fastest_that_fits(at_once, at_once, 256, {}, 1).piece_tokens, 0);  // which spares nothing
}

TEST(Memory, EvaluationNeedsWhatItsBatchTakes) {
    const auto model = test::kLlamaTied.load();
    const auto bytes = [&](int64_t tokens) { return evaluation_bytes(*model, {tokens, 16}, false); };
    EXPECT_LT(bytes(64), bytes(1 << 16));
    EXPECT_LT(bytes(64), evaluation_bytes(*model, {64, 1 << 16}, false));
    EXPECT_LT(bytes(1 << 20), evaluation_bytes(*model, {1 << 20, 16}, true));
}

TEST(Memory, APieceHoldsTheLongestSequence) {
    EXPECT_EQ(largest_piece({1000, 100}, 256).tokens, 256);
    EXPECT_EQ(largest_piece({1000, 400}, 256).tokens, 400);
    EXPECT_EQ(largest_piece({200, 100}, 256).tokens, 200);
}

TEST(Memory, TheLargestBatchIsOfTheLongest) {
    const auto batch = largest_batch({3, 9, 1, 7}, 2);
    EXPECT_EQ(batch.tokens, 16);
    EXPECT_EQ(batch.longest, 9);
}

TEST(Memory, ARunThatCannotFitSaysWhatToChange) {
    EXPECT_NO_THROW(check_memory({.trained = 1, .rest = 2}, 0, 3, ""));
    try {
        check_memory({.trained = 1'000'000'000, .rest = 2'500'000'000}, 0, 3'000'000'000, "lower --batch");
        FAIL();
    } catch (const Error& error) {
        EXPECT_EQ(error.kind(), ErrorKind::memory);
        const std::string words = error.what();
        for (const char* part : {"3.5 GB", "3.0 GB are free", "--batch"})
            EXPECT_NE(words.find(part), std::string::npos) << words;
    }
}

// What a run on 64 texts of 16 tokens chooses, whose pieces of 256 tokens hold a quarter of a batch.
class Choice : public testing::Test {
  protected:
    MemoryChoice choose(int64_t available, bool resumed = false) {
        return choose_memory(model, config, std::vector<int64_t>(64, 16), std::vector<int64_t>(1000, 16),
                             available, resumed);
    }
    int64_t needed(int64_t tokens, int64_t blocks = 0) {
        return estimate_memory(model, {tokens, 16}).total(blocks);
    }

    methods::AdaptedModel model{test::kLlamaTied.load(), methods::AdapterConfig{.method = "ether"}};
    RunConfig config = [] {
        RunConfig run;
        run.batch = 64, run.eval_batch = 1;
        return run;
    }();
};

TEST_F(Choice, FollowsWhatIsFree) {
    const auto at_once = choose(needed(1024)), in_pieces = choose(needed(1024) - 1);
    EXPECT_EQ(at_once.mode.piece_tokens, 0);
    EXPECT_TRUE(at_once.warnings.empty());
    EXPECT_EQ(in_pieces.mode.piece_tokens, 256);
    EXPECT_EQ(in_pieces.mode.checkpointed_blocks, 0);
    ASSERT_EQ(in_pieces.warnings.size(), 1);
    EXPECT_NE(in_pieces.warnings[0].find("it passes in pieces of 256 tokens"), std::string::npos);
    EXPECT_GT(choose(needed(256) - 1).mode.checkpointed_blocks, 0);
    EXPECT_FAILS(memory, "lower --max-length, or use --dtype bf16", choose(1));
    EXPECT_FAILS(memory, "end other programs", choose(1, true));
}

TEST_F(Choice, FollowsItsOptions) {
    config.memory = "low";
    const auto low = choose(int64_t{1} << 40);
    EXPECT_EQ(low.mode.piece_tokens, 256);
    EXPECT_TRUE(low.warnings.empty());
    config.checkpoint_activations = true;
    EXPECT_EQ(choose(int64_t{1} << 40).mode.checkpointed_blocks, model.model().shape().layers);
    config = {};
    config.batch = 8, config.memory = "low";  // 128 tokens are one piece
    EXPECT_EQ(choose(int64_t{1} << 40).mode.piece_tokens, 0);
    config.batch = 64, config.memory = "fast", config.eval_batch = 1;
    EXPECT_FAILS(memory, "use --memory auto", choose(needed(1024) - 1));
    config.force = true;
    EXPECT_EQ(choose(1).mode.piece_tokens, 0);
}

TEST_F(Choice, EvaluationNeverDecidesHowTrainingPasses) {
    config.batch = 4, config.eval_batch = 1000;
    const auto choice = choose(needed(64));
    EXPECT_EQ(choice.mode.piece_tokens, 0);
    EXPECT_LT(choice.eval_batch, 1000);
    ASSERT_EQ(choice.warnings.size(), 1);
    EXPECT_NE(choice.warnings[0].find("as 1000 need more memory than is free"), std::string::npos);
    config.memory = "fast";
    EXPECT_FAILS(memory, "use --memory auto", choose(needed(64)));
}

TEST_F(Choice, WholeBatchesStayWhole) {
    methods::AdaptedModel whole(test::kLlamaTied.load(), methods::AdapterConfig{.method = "id3"});
    const std::vector<int64_t> lengths(64, 16);
    EXPECT_FAILS(memory, "lower --batch or --max-length",
                 choose_memory(whole, config, lengths, {}, 1, false));
    config.memory = "low";
    EXPECT_FAILS(usage, "--memory low: method id3",
                 choose_memory(whole, config, lengths, {}, int64_t{1} << 40, false));
}

}  // namespace
}  // namespace ether::train
