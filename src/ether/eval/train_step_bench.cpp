#include "ether/eval/train_step_bench.h"

#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <map>

#include "ether/core/error.h"
#include "ether/models/registry.h"
#include "ether/ops/gemm/rate.h"
#include "ether/tasks/causal_lm.h"
#include "ether/tasks/classification.h"
#include "ether/train/gradient.h"
#include "ether/train/optimizer.h"

namespace ether::eval {
namespace {

using Clock = std::chrono::steady_clock;

// Linear layers that see every token; a classifier's pooler and head see one a sequence.
bool per_token(const nn::Model& model, const nn::Site& site) {
    return site.layer >= 0 || model.shape().head == nn::Head::causal_lm;
}

std::vector<ops::GemmShape> gemm_shapes(const nn::Model& model) {
    std::map<std::pair<int64_t, int64_t>, int64_t> counts;
    for (const auto& site : model.sites())
        if (per_token(model, site)) ++counts[{site.linear.out(), site.linear.in()}];
    std::vector<ops::GemmShape> shapes;
    for (const auto& [shape, count] : counts) shapes.push_back({shape.first, shape.second, count});
    return shapes;
}

std::vector<data::Sequence> random_sequences(const nn::ModelShape& shape, const BenchOptions& options) {
    const auto random = Random(options.seed).stream("bench");
    std::vector<data::Sequence> sequences(static_cast<size_t>(options.batch));
    uint64_t drawn = 0;
    for (auto& sequence : sequences) {
        for (int64_t i = 0; i < options.tokens; ++i)
            sequence.ids.push_back(
                static_cast<int64_t>(random.below(drawn++, static_cast<uint64_t>(shape.vocab_size))));
        if (shape.head == nn::Head::causal_lm) tasks::set_next_token_targets(sequence);
        sequence.label = static_cast<double>(random.below(drawn++, 2));
    }
    return sequences;
}

}  // namespace

double train_flops_per_token(const nn::Model& model, int64_t tokens) {
    const auto& shape = model.shape();
    double flops = 0;
    for (const auto& site : model.sites())
        flops += 4.0 * static_cast<double>(site.linear.in() * site.linear.out()) /
                 (per_token(model, site) ? 1.0 : static_cast<double>(tokens));
    const double attention =
        7.0 * static_cast<double>(shape.layers * shape.heads * shape.head_dim * (tokens + 1));
    return flops + (shape.causal ? attention : 2 * attention);
}

BenchResult bench_train_step(const io::Checkpoint& checkpoint, const BenchOptions& options) {
    const bool language = models::architecture_of(checkpoint).language_model_class != nullptr;
    const auto head = language ? nn::Head::causal_lm : nn::Head::sequence_classification;
    std::unique_ptr<tasks::Task> task;
    if (language)
        task = std::make_unique<tasks::CausalLm>();
    else
        task = std::make_unique<tasks::Classification>(data::LabelSet::from_names({"0", "1"}));
    auto base = models::load_model(
        checkpoint, {.head = head, .classes = 2, .dtype = options.dtype, .seed = options.seed});
    if (options.tokens > base->shape().max_positions)
        fail(ErrorKind::usage, "--tokens: {} is more than the model's {} positions", options.tokens,
             base->shape().max_positions);

    auto config = options.adapter;
    const bool frozen = config.method == "none";
    if (frozen) config.method = "head";
    methods::AdaptedModel model(std::move(base), config);
    if (frozen)  // gradients flow back to the first block's input, as they do under an adapter there
        model.model().points().front().attn_in = [](const at::Tensor& x, const nn::Pass&) {
            return x.detach().requires_grad_(true);
        };
    std::vector<train::OptimizedParameter> parameters;
    for (const auto& parameter : model.parameters().trained())
        parameters.push_back({parameter.name, parameter.value, 1e-4, 0});
    train::AdamW optimizer(parameters);
    const auto sequences = random_sequences(model.model().shape(), options);
    std::vector<int64_t> rows(sequences.size());
    for (size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<int64_t>(i);

    std::vector<double> seconds;
    for (int64_t step = 0; step <= options.steps; ++step) {
        const auto start = Clock::now();
        train::accumulate_gradients(model, *task, sequences, rows,
                                    {options.batch, Random(options.seed).stream(static_cast<uint64_t>(step)),
                                     options.checkpoint_activations});
        optimizer.step(1);
        model.parameters().clear_grads();
        if (step > 0) seconds.push_back(std::chrono::duration<double>(Clock::now() - start).count());
    }
    std::sort(seconds.begin(), seconds.end());

    BenchResult result;
    result.median_seconds = seconds[seconds.size() / 2];
    const auto total = static_cast<double>(options.batch * options.tokens);
    result.tokens_per_second = total / result.median_seconds;
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    result.peak_rss_bytes = int64_t{1024} * usage.ru_maxrss;
    result.trainable_parameters = frozen ? 0 : model.parameters().count();
    result.flops_per_token = train_flops_per_token(model.model(), options.tokens);
    const auto rate =
        ops::best_gemm_rate(gemm_shapes(model.model()), options.batch, options.tokens, model.model().dtype());
    result.gemm = rate.name;
    result.gemm_flops_per_second = rate.flops_per_second;
    result.gemm_limit_tokens_per_second = rate.flops_per_second / result.flops_per_token;
    return result;
}

}  // namespace ether::eval
