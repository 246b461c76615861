#include "ether/data/batch.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <limits>
#include <numeric>

#include "ether/core/error.h"

namespace ether::data {

std::vector<int64_t> lengths_of(std::span<const Sequence> sequences) {
    std::vector<int64_t> lengths;
    for (const auto& sequence : sequences) lengths.push_back(static_cast<int64_t>(sequence.ids.size()));
    return lengths;
}

std::vector<at::Tensor*> Batch::tensors() {
    std::vector<at::Tensor*> all = {&token_ids, &type_ids, &positions, &cu_seqlens, &labels, &targets};
    std::erase_if(all, [](const at::Tensor* tensor) { return !tensor->defined(); });
    return all;
}

Batch Batch::to(at::Device device) const {
    Batch moved = *this;
    for (auto* tensor : moved.tensors()) *tensor = tensor->to(device);
    return moved;
}

Batch collate(std::span<const Sequence> sequences, std::span<const int64_t> rows, LabelType labels) {
    ETHER_ASSERT(!rows.empty());
    const auto sequence = [&](int64_t row) -> const Sequence& {
        ETHER_ASSERT(row >= 0 && static_cast<size_t>(row) < sequences.size());
        return sequences[static_cast<size_t>(row)];
    };
    const bool has_targets = !sequence(rows[0]).targets.empty();
    size_t tokens = 0;
    for (const int64_t row : rows) {
        const Sequence& s = sequence(row);
        if (s.ids.empty())
            fail(ErrorKind::data, "example {} of the data set: expected one token or more, found none",
                 row + 1);
        ETHER_ASSERT(s.type_ids.empty() || s.type_ids.size() == s.ids.size());
        ETHER_ASSERT(s.targets.size() == (has_targets ? s.ids.size() : 0));
        tokens += s.ids.size();
    }
    if (tokens > static_cast<size_t>(std::numeric_limits<int32_t>::max()))
        fail(ErrorKind::data,
             "a batch of {} examples has {} tokens, more than 2^31 - 1; make batches smaller", rows.size(),
             tokens);

    const auto total = static_cast<int64_t>(tokens), count = static_cast<int64_t>(rows.size());
    Batch batch;
    batch.rows.assign(rows.begin(), rows.end());
    batch.token_ids = at::empty({total}, at::kLong);
    batch.type_ids = at::empty({total}, at::kLong);
    batch.positions = at::empty({total}, at::kLong);
    batch.cu_seqlens = at::empty({count + 1}, at::kInt);
    if (has_targets) batch.targets = at::empty({total}, at::kLong);
    if (labels != LabelType::none)
        batch.labels = at::empty({count}, labels == LabelType::index ? at::kLong : at::kFloat);

    auto* ids = batch.token_ids.mutable_data_ptr<int64_t>();
    auto* types = batch.type_ids.mutable_data_ptr<int64_t>();
    auto* positions = batch.positions.mutable_data_ptr<int64_t>();
    auto* bounds = batch.cu_seqlens.mutable_data_ptr<int32_t>();
    auto* targets = has_targets ? batch.targets.mutable_data_ptr<int64_t>() : nullptr;
    int64_t start = 0;
    for (int64_t b = 0; b < count; ++b) {
        const Sequence& s = sequence(rows[static_cast<size_t>(b)]);
        const auto length = static_cast<int64_t>(s.ids.size());
        bounds[b] = static_cast<int32_t>(start);
        std::ranges::copy(s.ids, ids + start);
        if (s.type_ids.empty())
            std::fill_n(types + start, length, 0);
        else
            std::ranges::copy(s.type_ids, types + start);
        std::iota(positions + start, positions + start + length, int64_t{0});
        if (has_targets) std::ranges::copy(s.targets, targets + start);
        batch.predicted += std::ranges::count_if(s.targets, [](int64_t id) { return id != kIgnoredTarget; });
        if (labels == LabelType::index)
            batch.labels.mutable_data_ptr<int64_t>()[b] = static_cast<int64_t>(s.label);
        if (labels == LabelType::real)
            batch.labels.mutable_data_ptr<float>()[b] = static_cast<float>(s.label);
        start += length;
        batch.max_length = std::max(batch.max_length, length);
    }
    bounds[count] = static_cast<int32_t>(start);
    return batch;
}

}  // namespace ether::data
