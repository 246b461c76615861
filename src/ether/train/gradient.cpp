#include "ether/train/gradient.h"

#include <ATen/Functions.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>

#include "ether/core/error.h"
#include "ether/core/parallel.h"

namespace ether::train {
namespace {

// Below this a thread's products are too small to be fast; above that share of the mean, the others wait too
// long for the fullest slice. Then all threads work on each operation together.
constexpr int64_t kSmallestSlice = 64;  // tokens
constexpr double kFullestSlice = 1.15;

// Rows in at most `parts` consecutive pieces of about as many tokens.
std::vector<data::BatchRows> balanced(std::span<const data::Sequence> sequences, const data::BatchRows& rows,
                                      int parts) {
    const auto tokens_of = [&](int64_t row) {
        return static_cast<int64_t>(sequences[static_cast<size_t>(row)].ids.size());
    };
    int64_t total = 0, fullest = 0, done = 0;
    for (const auto row : rows) total += tokens_of(row);
    std::vector<data::BatchRows> pieces;
    size_t next = 0;
    for (int part = 0; part < parts; ++part) {
        const double end = static_cast<double>(total) * (part + 1) / parts;
        data::BatchRows piece;
        int64_t tokens = 0;
        // A row belongs to the piece in which its middle lies.
        for (; next < rows.size() &&
               static_cast<double>(done) + 0.5 * static_cast<double>(tokens_of(rows[next])) < end;
             ++next) {
            piece.push_back(rows[next]);
            tokens += tokens_of(rows[next]);
            done += tokens_of(rows[next]);
        }
        fullest = std::max(fullest, tokens);
        if (!piece.empty()) pieces.push_back(std::move(piece));
    }
    const double mean = static_cast<double>(total) / parts;
    const bool pays = mean >= kSmallestSlice && static_cast<double>(fullest) <= kFullestSlice * mean;
    if (!pays) pieces.assign(1, rows);
    return pieces;
}

// Rows in consecutive pieces of at most so many tokens, or of one row; 0: in one piece.
std::vector<data::BatchRows> in_pieces(std::span<const data::Sequence> sequences, const data::BatchRows& rows,
                                       int64_t most_tokens) {
    if (most_tokens == 0) return {rows};
    std::vector<data::BatchRows> pieces;
    int64_t tokens = 0;  // of the last piece
    for (const auto row : rows) {
        const auto own = static_cast<int64_t>(sequences[static_cast<size_t>(row)].ids.size());
        if (pieces.empty() || tokens + own > most_tokens) {
            pieces.emplace_back();
            tokens = 0;
        }
        pieces.back().push_back(row);
        tokens += own;
    }
    return pieces;
}

// Methods that look at a pass as a whole, and copies of whole weights' gradients, are neither for slices nor
// for graphs.
bool has_plain_passes(methods::AdaptedModel& model) {
    return model.forward_passes() == 1 && model.parameters().count(nn::ParameterGroup::base) == 0 &&
           !model.wants_weight_grad();
}

// A change as large as its weight: each slice would make it, add the two, and have a gradient of that size.
bool adds_densely(const methods::AdaptedModel& model) {
    return std::any_of(model.sites().begin(), model.sites().end(), [](const nn::Site* site) {
        return nn::dense_delta(site->forms, site->linear.weight.scalar_type()).has_value();
    });
}

// The mean loss's share of one batch.
at::Tensor loss_share(methods::AdaptedModel& model, const tasks::Task& task, nn::Pass pass,
                      const Random& random, double weight) {
    at::Tensor loss;
    std::vector<at::Tensor> logits;
    for (pass.index = 0; pass.index < model.forward_passes(); ++pass.index) {
        pass.random = random.stream(static_cast<uint64_t>(pass.index));
        const auto part = task.loss(model, pass);
        const auto scaled = part.sum / weight;
        loss = loss.defined() ? loss + scaled : scaled;
        logits.push_back(part.logits);
    }
    if (const auto extra = model.extra_loss(logits); extra.defined())
        loss = loss + extra * (task.weight(pass.batch) / weight);
    return loss;
}

}  // namespace

bool can_pass_in_pieces(methods::AdaptedModel& model) { return !model.wants_weight_grad(); }

void check_can_pass_in_pieces(methods::AdaptedModel& model) {
    if (!can_pass_in_pieces(model))
        fail(ErrorKind::usage,
             "--memory low: method {} looks at the weights' gradients of a whole batch, which are only there "
             "if it passes in one piece; leave the option out",
             model.method_name());
}

bool can_checkpoint(methods::AdaptedModel& model) {
    return model.forward_passes() == 1 && !model.wants_weight_grad() && !model.inserts_modules();
}

void check_can_checkpoint(methods::AdaptedModel& model) {
    if (!can_checkpoint(model))
        fail(ErrorKind::usage,
             "--checkpoint-activations: blocks of method {} cannot be run again, as they are changed at more "
             "than their linear layers, run several times a step, or asked for their weights' gradients; "
             "leave "
             "the option out",
             model.method_name());
}

StepSums accumulate_gradients(methods::AdaptedModel& model, const tasks::Task& task,
                              std::span<const data::Sequence> sequences, const data::BatchRows& rows,
                              const StepOptions& options) {
    if (options.memory.piece_tokens > 0) check_can_pass_in_pieces(model);
    if (options.memory.checkpointed_blocks > 0) check_can_checkpoint(model);
    const auto device = model.model().device();
    const int threads = device.is_cpu() && has_plain_passes(model) ? num_threads() : 1;
    std::vector<data::BatchRows> cuts;
    for (const auto& micro : data::cut(rows, options.batch))
        for (auto& piece : in_pieces(sequences, micro, options.memory.piece_tokens))
            cuts.push_back(std::move(piece));
    std::vector<std::vector<data::Batch>> micro_batches;
    StepSums sums;
    double weight = 0;
    for (const auto& micro : cuts) {
        auto& slices = micro_batches.emplace_back();
        for (const auto& slice : balanced(sequences, micro, threads)) {
            const auto batch = data::collate(sequences, slice, task.label_type());
            weight += task.weight(batch);
            slices.push_back(batch.to(device));
            sums.tokens += slices.back().tokens();
        }
    }
    std::vector<at::Tensor> trained;
    for (const auto& parameter : model.parameters().trained()) trained.push_back(parameter.value);
    const bool plain = has_plain_passes(model) && options.memory.checkpointed_blocks == 0 && !trained.empty();
    auto* const graphs = plain ? options.graphs : nullptr;
    const auto share = [&model, &task, random = options.random, weight](const nn::Pass& pass) {
        return loss_share(model, task, pass, random, weight);
    };
    int64_t first_token = 0, first_sequence = 0;
    for (size_t k = 0; k < micro_batches.size(); ++k) {
        const auto& slices = micro_batches[k];
        const auto pass_of = [&](const data::Batch& batch, int64_t token, int64_t sequence) {
            return nn::Pass{.batch = batch,
                            .training = true,
                            .first_token = token,
                            .first_sequence = sequence,
                            .bound = slices.size() > 1,
                            .checkpointed_blocks = options.memory.checkpointed_blocks};
        };
        std::vector<nn::Pass> passes;
        for (const auto& slice : slices) {
            passes.push_back(pass_of(slice, first_token, first_sequence));
            first_token += slice.tokens();
            first_sequence += slice.size();
        }
        const auto add_whole = [&](const nn::Pass& pass) {
            const auto loss = share(pass);
            loss.backward();
            sums.loss += loss.item<double>();
        };
        if (slices.size() == 1) {
            if (graphs)
                sums.loss += graphs->run(passes.front(), weight, share);
            else
                add_whole(passes.front());
            continue;
        }
        nn::Pass shared = passes.front();
        shared.random = options.random.stream(uint64_t{0});
        model.bind(shared);
        if (adds_densely(model)) {
            const auto whole = data::collate(sequences, cuts[k], task.label_type()).to(device);
            add_whole(pass_of(whole, shared.first_token, shared.first_sequence));
            continue;
        }
        std::vector<double> losses(slices.size());
        std::vector<std::vector<at::Tensor>> gradients(slices.size());
        parallel_for(static_cast<int64_t>(slices.size()), 1, [&](int, int64_t begin, int64_t end) {
            for (auto i = static_cast<size_t>(begin); i < static_cast<size_t>(end); ++i) {
                const auto loss = share(passes[i]);
                // Slices share the graph of the forms, so each keeps it.
                if (!trained.empty())
                    gradients[i] = torch::autograd::grad({loss}, trained, {}, /*retain_graph=*/true,
                                                         /*create_graph=*/false, /*allow_unused=*/true);
                losses[i] = loss.item<double>();
            }
        });
        for (size_t i = 0; i < slices.size(); ++i) {
            sums.loss += losses[i];
            for (size_t j = 0; j < trained.size(); ++j) {
                auto& sum = trained[j].mutable_grad();
                if (const auto& part = gradients[i][j]; part.defined())
                    sum = sum.defined() ? sum.add_(part) : part.clone();
            }
        }
    }
    return sums;
}

}  // namespace ether::train
