// A batch of token sequences laid end to end, never padded: what models take.
// Plain values; tensors are owned. collate() makes them on the CPU and fails with kind `data` on sequences
// that cannot be run.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <vector>

namespace ether::data {

inline constexpr int64_t kIgnoredTarget = -100;

struct Sequence {
    std::vector<int64_t> ids;       // at least one
    std::vector<int64_t> type_ids;  // as long as ids, or empty for all 0
    std::vector<int64_t>
        targets;       // as long as ids, or empty: the id to predict at each position, or kIgnoredTarget
    double label = 0;  // a class's index or a regression target; unused by other tasks
};

// B sequences of T tokens in all. Sequence b is [cu_seqlens[b], cu_seqlens[b + 1]) of every (T) tensor.
struct Batch {
    at::Tensor token_ids;       // (T) int64
    at::Tensor type_ids;        // (T) int64
    at::Tensor positions;       // (T) int64, from 0 in each sequence
    at::Tensor cu_seqlens;      // (B + 1) int32, from 0 to T
    at::Tensor labels;          // (B) int64 or float32, undefined for LabelType::none
    at::Tensor targets;         // (T) int64, undefined where no sequence has targets
    std::vector<int64_t> rows;  // (B) the sequences' indices in the data set
    int64_t max_length = 0;     // of one sequence, in tokens
    int64_t predicted = 0;      // targets that are not ignored

    int64_t size() const { return static_cast<int64_t>(rows.size()); }
    int64_t tokens() const { return token_ids.size(0); }
    std::vector<at::Tensor*> tensors();  // those that are defined
    Batch to(at::Device device) const;
};

enum class LabelType { none, index, real };  // no labels, int64 class indices, float32 values

// Each sequence's number of tokens.
std::vector<int64_t> lengths_of(std::span<const Sequence> sequences);

// Lays sequences[rows[0]], sequences[rows[1]], ... end to end; `rows` is not empty. Either all of them have
// targets or none.
Batch collate(std::span<const Sequence> sequences, std::span<const int64_t> rows, LabelType labels);

}  // namespace ether::data
