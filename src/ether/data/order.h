// Which examples form which batch: pure functions of seed, epoch and lengths, so that a resumed run meets the
// same batches, and a run on other hardware too. Immutable and safe to share between threads. Sizes below 1
// are Errors of kind `usage`.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace ether::data {

using BatchRows = std::vector<int64_t>;  // indices of examples in the data set

struct OrderOptions {
    uint64_t seed = 0;
    int64_t batch = 32;      // examples in a batch
    bool bucketing = false;  // batches of examples of like length
};

// An epoch holds every example once, in batches of exactly `batch` but for a smaller last one where the
// numbers do not divide. The epoch's order is drawn by Random(seed).stream(epoch): the examples are permuted;
// the permutation is cut into batches as it falls. With bucketing its last n mod batch ones form the last
// batch; the others are cut into pools of 20 batches, each pool is sorted by length and cut into batches, and
// all of these are permuted. Then a batch holds examples of like length, which evens out the steps' cost,
// while no epoch begins or ends with short ones; it costs accuracy where length tells something of the label
// (docs/performance.md), and saves no time, since batches are never padded.
class EpochOrder {
  public:
    EpochOrder(std::vector<int64_t> lengths, const OrderOptions& options);

    int64_t batches_per_epoch() const;
    std::vector<BatchRows> epoch(int64_t number) const;  // from 0

  private:
    std::vector<int64_t> lengths_;
    OrderOptions options_;
};

// Rows in pieces of `batch`, the last one maybe smaller.
std::vector<BatchRows> cut(std::span<const int64_t> rows, int64_t batch);

// For evaluation: every example once, longest first (so that memory peaks in the first batch), equal ones by
// index.
std::vector<BatchRows> evaluation_order(std::span<const int64_t> lengths, int64_t batch);

}  // namespace ether::data
