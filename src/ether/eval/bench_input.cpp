#include "ether/eval/bench_input.h"

#include "ether/core/error.h"
#include "ether/models/registry.h"
#include "ether/tasks/causal_lm.h"

namespace ether::eval {

std::unique_ptr<nn::Model> load_bench_model(const io::Checkpoint& checkpoint, const BenchInput& input) {
    const bool language = models::architecture_of(checkpoint).language_model_class != nullptr;
    return models::load_model(checkpoint,
                              {.head = language ? nn::Head::causal_lm : nn::Head::sequence_classification,
                               .classes = 2,
                               .dtype = input.dtype,
                               .seed = input.seed,
                               .device = input.device});
}

std::vector<data::Sequence> random_sequences(const nn::ModelShape& shape, const BenchInput& input) {
    if (input.tokens > shape.max_positions)
        fail(ErrorKind::usage, "--tokens: {} is more than the model's {} positions", input.tokens,
             shape.max_positions);
    const auto random = Random(input.seed).stream("bench");
    std::vector<data::Sequence> sequences(static_cast<size_t>(input.batch));
    uint64_t drawn = 0;
    for (auto& sequence : sequences) {
        for (int64_t i = 0; i < input.tokens; ++i)
            sequence.ids.push_back(
                static_cast<int64_t>(random.below(drawn++, static_cast<uint64_t>(shape.vocab_size))));
        if (shape.head == nn::Head::causal_lm) tasks::set_next_token_targets(sequence);
        sequence.label = static_cast<double>(random.below(drawn++, 2));
    }
    return sequences;
}

}  // namespace ether::eval
