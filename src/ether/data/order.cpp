#include "ether/data/order.h"

#include <algorithm>
#include <functional>
#include <numeric>
#include <utility>

#include "ether/core/error.h"
#include "ether/core/random.h"

namespace ether::data {
namespace {

constexpr int64_t kBatchesPerPool = 20;

void check_batch(int64_t batch) {
    if (batch < 1) fail(ErrorKind::usage, "batch size: expected 1 or more, found {}", batch);
}

}  // namespace

EpochOrder::EpochOrder(std::vector<int64_t> lengths, const OrderOptions& options)
    : lengths_(std::move(lengths)), options_(options) {
    check_batch(options.batch);
}

int64_t EpochOrder::batches_per_epoch() const {
    const auto count = static_cast<int64_t>(lengths_.size());
    return count / options_.batch + (count % options_.batch != 0);
}

std::vector<BatchRows> EpochOrder::epoch(int64_t number) const {
    const Random random = Random(options_.seed).stream(static_cast<uint64_t>(number));
    const auto count = static_cast<int64_t>(lengths_.size());
    std::vector<int64_t> rows = random.permutation(count);
    if (!options_.bucketing) return cut(rows, options_.batch);

    const int64_t full_batches = count / options_.batch;
    for (int64_t first = 0; first < full_batches; first += kBatchesPerPool) {
        const int64_t last = std::min(first + kBatchesPerPool, full_batches);
        std::stable_sort(rows.begin() + first * options_.batch, rows.begin() + last * options_.batch,
                         [this](int64_t a, int64_t b) {
                             return lengths_[static_cast<size_t>(a)] < lengths_[static_cast<size_t>(b)];
                         });
    }
    std::vector<BatchRows> sorted = cut(rows, options_.batch), batches;
    for (const int64_t batch : random.stream("batches").permutation(full_batches))
        batches.push_back(std::move(sorted[static_cast<size_t>(batch)]));
    if (full_batches < batches_per_epoch()) batches.push_back(std::move(sorted.back()));
    return batches;
}

std::vector<BatchRows> cut(std::span<const int64_t> rows, int64_t batch) {
    std::vector<BatchRows> batches;
    for (size_t start = 0; start < rows.size(); start += static_cast<size_t>(batch)) {
        const auto part = rows.subspan(start, std::min(static_cast<size_t>(batch), rows.size() - start));
        batches.emplace_back(part.begin(), part.end());
    }
    return batches;
}

std::vector<BatchRows> evaluation_order(std::span<const int64_t> lengths, int64_t batch) {
    check_batch(batch);
    std::vector<int64_t> rows(lengths.size());
    std::iota(rows.begin(), rows.end(), int64_t{0});
    std::ranges::stable_sort(rows, std::greater<>(),
                             [&](int64_t row) { return lengths[static_cast<size_t>(row)]; });
    return cut(rows, batch);
}

}  // namespace ether::data
