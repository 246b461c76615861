#include "ether/eval/train_step_bench.h"

#include <sys/resource.h>

#include <chrono>
#include <map>
#include <numeric>

#include "ether/core/error.h"
#include "ether/eval/timing.h"
#include "ether/ops/device.h"
#include "ether/ops/gemm/rate.h"
#include "ether/tasks/causal_lm.h"
#include "ether/tasks/classification.h"
#include "ether/train/gradient.h"
#include "ether/train/memory_mode.h"
#include "ether/train/optimizer.h"

namespace ether::eval {
namespace {

using Clock = std::chrono::steady_clock;

// Linear layers that see every token; a classifier's pooler and head see one a sequence.
bool per_token(const nn::Model& model, const nn::Site& site) {
    return site.layer >= 0 || model.shape().head == nn::Head::causal_lm;
}

}  // namespace

std::vector<ops::GemmShape> gemm_shapes(const nn::Model& model) {
    std::map<std::pair<int64_t, int64_t>, int64_t> counts;
    for (const auto& site : model.sites())
        if (per_token(model, site)) ++counts[{site.linear.out(), site.linear.in()}];
    std::vector<ops::GemmShape> shapes;
    for (const auto& [shape, count] : counts) shapes.push_back({shape.first, shape.second, count});
    return shapes;
}

double train_flops_per_token(const nn::Model& model, int64_t tokens) {
    const auto& shape = model.shape();
    double flops = 0;
    for (const auto& site : model.sites())
        flops += 4.0 * static_cast<double>(site.linear.in() * site.linear.out()) /
                 (per_token(model, site) ? 1.0 : static_cast<double>(tokens));
    const auto features = static_cast<double>(shape.layers * shape.heads * shape.head_dim);
    const auto seen = static_cast<double>(shape.causal ? tokens + 1 : 2 * tokens);
    return flops + 7 * features * seen;
}

double median_step(methods::AdaptedModel& model, const BenchInput& input, int64_t steps,
                   const train::MemoryMode& memory) {
    std::unique_ptr<tasks::Task> task;
    if (model.model().shape().head == nn::Head::causal_lm)
        task = std::make_unique<tasks::CausalLm>();
    else
        task = std::make_unique<tasks::Classification>(data::LabelSet::from_names({"0", "1"}, "bench"));
    std::vector<train::OptimizedParameter> parameters;
    for (const auto& parameter : model.parameters().trained())
        parameters.push_back({parameter.name, parameter.value, 1e-4, 0});
    train::AdamW optimizer(parameters);
    const auto graphs = train::PassGraphs::of(model);
    const auto sequences = random_sequences(model.model().shape(), input);
    std::vector<int64_t> rows(sequences.size());
    std::iota(rows.begin(), rows.end(), 0);

    std::vector<double> seconds;
    const int64_t unmeasured = graphs ? 3 : 1;  // a graph is recorded in the third step
    for (int64_t step = 0; step < unmeasured + steps; ++step) {
        const auto start = Clock::now();
        train::accumulate_gradients(
            model, *task, sequences, rows,
            {input.batch, Random(input.seed).stream(static_cast<uint64_t>(step)), memory, graphs.get()});
        model.after_backward({step, unmeasured + steps});
        optimizer.step(1);
        model.after_update({.step = step + 1, .total = unmeasured + steps});
        model.parameters().clear_grads();
        ops::wait_for(model.model().device());
        if (step >= unmeasured)
            seconds.push_back(std::chrono::duration<double>(Clock::now() - start).count());
    }
    return median(std::move(seconds));
}

TrainStepResult bench_train_step(const io::Checkpoint& checkpoint, const TrainStepOptions& options) {
    auto base = load_bench_model(checkpoint, options.input);
    auto config = options.adapter;
    const bool frozen = config.method == "none";
    // Gradients flow back to the first block, as they do under an adapter there; nothing else is adapted.
    if (frozen) config = {.method = "ether", .targets = {.modules = "attention", .layers = "0"}};
    methods::AdaptedModel model(std::move(base), config);
    TrainStepResult result;
    train::MemoryMode memory;
    if (options.memory == "low") memory.piece_tokens = train::piece_tokens(model.model().device());
    if (options.checkpoint_activations) memory.checkpointed_blocks = model.model().shape().layers;
    result.median_seconds = median_step(model, options.input, options.steps, memory);
    const auto total = static_cast<double>(options.input.batch * options.input.tokens);
    result.tokens_per_second = total / result.median_seconds;
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    result.peak_rss_bytes = int64_t{1024} * usage.ru_maxrss;
    result.peak_device_bytes = ops::peak_memory(options.input.device);
    result.trainable_parameters = frozen ? 0 : model.parameters().count();
    result.flops_per_token = train_flops_per_token(model.model(), options.input.tokens);
    const auto rate =
        ops::best_gemm_rate(gemm_shapes(model.model()), options.input.batch, options.input.tokens,
                            model.model().dtype(), model.model().device());
    result.gemm = rate.name;
    result.gemm_flops_per_second = rate.flops_per_second;
    result.gemm_limit_tokens_per_second = rate.flops_per_second / result.flops_per_token;
    return result;
}

}  // namespace ether::eval
