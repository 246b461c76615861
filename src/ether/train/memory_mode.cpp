#include "ether/train/memory_mode.h"

#include <algorithm>

#include "ether/core/error.h"
#include "ether/core/parallel.h"

namespace ether::train {
namespace {

// Evaluation takes as many examples at once as fit, or with --memory low as need no more than training does.
int64_t fitting_eval_batch(MemoryEstimate& estimate, const nn::Model& model, const RunConfig& config,
                           const std::vector<int64_t>& lengths, int64_t activations, int64_t available) {
    const int64_t room =
        config.memory == "low" ? activations : std::max(activations, available - estimate.trained);
    for (int64_t batch = config.eval_batch;; batch /= 2) {
        estimate.evaluation = evaluation_bytes(model, largest_batch(lengths, batch), estimate.whole_logits);
        if (config.memory == "fast" || batch == 1 || estimate.evaluation <= room) return batch;
    }
}

std::string advice(methods::AdaptedModel& model, const RunConfig& config, const MemoryMode& mode,
                   bool resumed) {
    const bool divides = can_pass_in_pieces(model);
    if (config.memory == "fast" && (divides || can_checkpoint(model))) return "use --memory auto";
    if (mode.piece_tokens)
        return resumed ? "end other programs, or go on on a machine with more memory"
                       : "lower --max-length, or use --dtype bf16";
    if (resumed) return "in its run.toml, lower batch as much as you raise accumulate";
    return fmt::format("lower --batch{} or --max-length, or use --dtype bf16",
                       divides ? " (and raise --accumulate to keep the result)" : "");
}

}  // namespace

LargestBatch largest_piece(const LargestBatch& batch, int64_t piece_tokens) {
    return {std::min(batch.tokens, std::max(piece_tokens, batch.longest)), batch.longest};
}

int64_t piece_tokens(at::Device device) {
    return device.is_cpu() ? std::max<int64_t>(256, 64 * num_threads()) : 2048;
}

MemoryMode fastest_that_fits(const MemoryEstimate& at_once, const std::optional<MemoryEstimate>& in_pieces,
                             int64_t piece_tokens, BlockRange checkpointed, int64_t available) {
    const auto [least, most] = checkpointed;
    MemoryMode mode{0, least};
    if (at_once.total(least) <= available) return mode;
    if (in_pieces && in_pieces->total(least) < at_once.total(least)) mode.piece_tokens = piece_tokens;
    const auto& estimate = mode.piece_tokens ? *in_pieces : at_once;
    mode.checkpointed_blocks = std::clamp(estimate.blocks_to_checkpoint(available), least, most);
    return mode;
}

MemoryChoice choose_memory(methods::AdaptedModel& model, const RunConfig& config,
                           const std::vector<int64_t>& training_lengths,
                           const std::vector<int64_t>& evaluation_lengths, int64_t available, bool resumed) {
    if (config.checkpoint_activations) check_can_checkpoint(model);
    if (config.memory == "low") check_can_pass_in_pieces(model);
    const int64_t tokens = piece_tokens(model.model().device());
    const auto training = largest_batch(training_lengths, config.batch),
               piece = largest_piece(training, tokens);
    const auto at_once = estimate_memory(model, training);
    std::optional<MemoryEstimate> in_pieces;
    if (config.memory != "fast" && can_pass_in_pieces(model) && piece.tokens < training.tokens)
        in_pieces = estimate_memory(model, piece);
    BlockRange blocks;
    if (config.memory != "fast" && can_checkpoint(model)) blocks.most = at_once.blocks;
    if (config.checkpoint_activations) blocks = {at_once.blocks, at_once.blocks};

    MemoryChoice choice;
    if (config.memory == "low" && in_pieces)
        choice.mode = {tokens,
                       std::clamp(in_pieces->blocks_to_checkpoint(available), blocks.least, blocks.most)};
    else
        choice.mode = fastest_that_fits(at_once, in_pieces, tokens, blocks, available);
    if (choice.mode.piece_tokens && config.memory == "auto")
        choice.warnings.push_back(fmt::format(
            "a batch at once needs more memory than is free: it passes in pieces of {} tokens, as "
            "with --memory low, which takes longer",
            tokens));

    auto estimate = choice.mode.piece_tokens ? *in_pieces : at_once;
    choice.eval_batch = fitting_eval_batch(estimate, model.model(), config, evaluation_lengths,
                                           estimate.activations(choice.mode.checkpointed_blocks), available);
    if (choice.eval_batch < config.eval_batch)
        choice.warnings.push_back(fmt::format(
            "evaluation takes {} examples at once, as {} need more memory than {}", choice.eval_batch,
            config.eval_batch, config.memory == "low" ? "training" : "is free"));
    if (!config.force)
        check_memory(estimate, choice.mode.checkpointed_blocks, available,
                     advice(model, config, choice.mode, resumed));
    return choice;
}

}  // namespace ether::train
