#include "ether/eval/mixed_batch_bench.h"

#include <ATen/Functions.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <set>

#include "ether/core/error.h"
#include "ether/core/parallel.h"
#include "ether/eval/timing.h"
#include "ether/nn/bank.h"
#include "ether/ops/isa.h"
#include "ether/ops/vector.h"

namespace ether::eval {
namespace {

// Bytes a second of reading memory that no cache holds, each thread its part.
double read_bandwidth() {
    constexpr int64_t kBytes = int64_t{256} << 20, kCount = kBytes / static_cast<int64_t>(sizeof(float));
    constexpr int kRepeats = 5, kSums = 8;
    const auto values = at::ones({kCount});
    const float* from = values.const_data_ptr<float>();
    std::vector<float> sums(static_cast<size_t>(num_threads()));
    double best = 1e30;
    for (int repeat = 0; repeat < kRepeats; ++repeat)
        best = std::min(
            best, seconds_of([&] {
                parallel_for(kCount, 1, [&](int chunk, int64_t begin, int64_t end) {
                    ops::for_best_isa([&]<int bytes>(ops::Isa<bytes>) {
                        constexpr int64_t kLanes = ops::kLanes<float, bytes>, kStep = kSums * kLanes;
                        ops::Vector<float, bytes> sum[kSums] = {};
                        for (int64_t i = begin; i + kStep <= end; i += kStep)
                            for (int k = 0; k < kSums; ++k)
                                sum[k] += ops::load<float>(from + i + k * kLanes, ops::AllLanes<bytes>());
                        for (int k = 1; k < kSums; ++k) sum[0] += sum[k];
                        sums[static_cast<size_t>(chunk)] = ops::sum_of<float>(sum[0]);
                    });
                });
            }));
    // Read, so that the sums are not left out.
    ETHER_ASSERT(std::accumulate(sums.begin(), sums.end(), 0.0F) > 0);
    return static_cast<double>(kBytes) / best;
}

// `count` adapters of one kind: the forms with other values. A tensor that stands twice stays one.
std::vector<nn::SiteForms> variants(const nn::SiteForms& forms, int64_t count) {
    std::vector<nn::SiteForms> result;
    for (int64_t i = 0; i < count; ++i) {
        auto& variant = result.emplace_back(forms);
        std::map<const void*, at::Tensor> made;
        for (at::Tensor* tensor : nn::tensors_of(variant)) {
            auto& other = made[tensor->unsafeGetTensorImpl()];
            if (!other.defined()) other = *tensor + 0.01 * at::randn_like(*tensor);
            *tensor = other;
        }
    }
    return result;
}

int64_t bytes_of(nn::SiteForms& forms) {
    std::set<const void*> seen;
    int64_t bytes = 0;
    for (const at::Tensor* tensor : nn::tensors_of(forms))
        if (seen.insert(tensor->const_data_ptr()).second) bytes += static_cast<int64_t>(tensor->nbytes());
    return bytes;
}

}  // namespace

MixedBatchResult bench_mixed_batch(const io::Checkpoint& checkpoint, const MixedBatchOptions& options) {
    const at::NoGradGuard no_grad;
    methods::AdaptedModel model(load_bench_model(checkpoint, options.input), options.adapter);
    if (model.sites().empty())
        fail(ErrorKind::usage, "--method: {} changes no linear layer, so rows cannot differ in it",
             options.adapter.method);
    const auto sequences = random_sequences(model.model().shape(), options.input);
    std::vector<int64_t> all(sequences.size());
    std::iota(all.begin(), all.end(), 0);
    const auto device = options.input.device;
    const auto batch = data::collate(sequences, all, data::LabelType::none).to(device);
    const auto rows =
        at::arange(options.input.batch, batch.cu_seqlens.options()).repeat_interleave(options.input.tokens);
    const nn::Pass base{.batch = batch, .bound = true},
        mixed{.batch = batch, .bound = true, .adapter_rows = rows};

    MixedBatchResult result;
    std::vector<nn::SiteForms> banks;
    model.bind(base);
    for (const auto* site : model.sites()) {
        banks.push_back(nn::banked(variants(site->forms, options.input.batch)));
        result.adapter_bytes += bytes_of(banks.back());
    }
    std::vector<double> base_seconds, mixed_seconds;
    for (int64_t repeat = 0; repeat <= options.repeats; ++repeat) {  // the first one warms up
        model.model().unbind();
        const double without = seconds_of([&] { model.model().logits(base); }, device);
        for (size_t i = 0; i < banks.size(); ++i) model.sites()[i]->forms = banks[i];
        const double with = seconds_of([&] { model.model().logits(mixed); }, device);
        if (repeat == 0) continue;
        base_seconds.push_back(without);
        mixed_seconds.push_back(with);
    }
    result.base_seconds = median(base_seconds);
    result.mixed_seconds = median(mixed_seconds);
    result.bytes_per_second = device.is_cpu() ? read_bandwidth() : copy_bandwidth(device);
    return result;
}

}  // namespace ether::eval
