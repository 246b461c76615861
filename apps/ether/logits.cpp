#include <ATen/Functions.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "command_line.h"
#include "ether/core/error.h"
#include "ether/io/atomic.h"
#include "ether/io/file.h"
#include "ether/io/json_reader.h"
#include "ether/io/safetensors.h"
#include "loading.h"
#include "verb.h"

namespace ether::app {
namespace {

constexpr const char* kTensorPrefix = "logits.";  // before a row's number

std::vector<data::Sequence> read_tokens(const std::string& path, const nn::ModelShape& shape) {
    const auto json = io::parse_json(io::read_input(path), path);
    auto wrong = [&](const std::string& what) {
        fail(ErrorKind::data, "{}: {}; expected rows of token ids, like [[1, 2, 3], [4, 5]]", path, what);
    };
    if (!json.is_array() || json.empty()) wrong("not a list of rows");
    std::vector<data::Sequence> sequences;
    for (const auto& row : json) {
        const auto number = sequences.size();
        if (!row.is_array() || row.empty()) wrong(fmt::format("row {} is {}", number, io::describe(row)));
        auto& sequence = sequences.emplace_back();
        for (const auto& id : row) {
            if (!id.is_number_integer()) wrong(fmt::format("row {} holds {}", number, io::describe(id)));
            if (id < 0 || id >= shape.vocab_size)
                fail(ErrorKind::data, "{}: row {} holds id {}, but the model's vocabulary ends at {}", path,
                     number, id.dump(), shape.vocab_size - 1);
            sequence.ids.push_back(id.get<int64_t>());
        }
        if (static_cast<int64_t>(sequence.ids.size()) > shape.max_positions)
            fail(ErrorKind::data, "{}: row {} has {} ids, but the model has {} positions", path, number,
                 sequence.ids.size(), shape.max_positions);
    }
    return sequences;
}

bool holds_logits(const std::string& file) {
    try {
        const auto names = io::SafetensorsFile(file).names();
        return !names.empty() && std::all_of(names.begin(), names.end(), [](const auto& name) {
            return name.starts_with(kTensorPrefix);
        });
    } catch (const Error&) {
        return false;
    }
}

// The result takes the place of an earlier one alone, not of weights or whatever else it would destroy.
void refuse_to_replace(const std::string& out) {
    namespace fs = std::filesystem;
    std::error_code code;
    const auto status = fs::status(out, code);
    if (!fs::is_regular_file(status) || fs::file_size(out, code) == 0 || holds_logits(out)) return;
    fail(ErrorKind::usage, "--out: {} is there already and holds no logits; name another file", out);
}

}  // namespace

int logits_main(int argc, char** argv) {
    LoadingOptions loading;
    std::string tokens, out;
    int64_t batch = 16;
    CommandLine line(
        "logits",
        "Writes the logits of rows of token ids, float32, one tensor logits.N a row: (tokens, "
        "vocabulary) of a "
        "language model, (classes) of a classifier. Needs no tokenizer.",
        "ether logits --model DIR --adapter runs/a --tokens tokens.json --out logits.safetensors");
    line.add(loading.fields(), {"model"});
    line.add(loading.device_fields());
    line.add(
        {
            {.name = "tokens", .value = &tokens, .help = "JSON: [[ids], [ids], ...], rows of any length"},
            {.name = "out", .value = &out, .help = "safetensors file to write; an earlier one is replaced"},
            {.name = "batch", .value = &batch, .help = "rows in a batch", .low = 1, .high = 1e6},
        },
        {"tokens", "out"});
    if (!line.parse(argc, argv)) return 0;
    io::remove_temporaries_on_signals();
    refuse_to_replace(out);

    const auto loaded = loading.load();
    loaded.check_has_head();
    const auto sequences = read_tokens(tokens, loaded.model->model().shape());
    io::NamedTensors tensors;
    const auto compute = [&](const nn::Pass& pass) { return loaded.model->logits(pass).to(at::kFloat); };
    const auto none = data::LabelType::none;
    tasks::for_each_batch(
        *loaded.model, sequences, batch, none, compute, [&](const data::Batch& b, const at::Tensor& logits) {
            const bool per_token = loaded.task->head() == nn::Head::causal_lm;
            for (int64_t i = 0; i < b.size(); ++i) {
                const auto begin = b.cu_seqlens[i].item<int64_t>(), end = b.cu_seqlens[i + 1].item<int64_t>();
                const auto row = b.rows[static_cast<size_t>(i)];
                const auto own = per_token ? logits.narrow(0, begin, end - begin) : logits[i];
                if (!own.isfinite().all().item<bool>())
                    fail(ErrorKind::numeric, "{}: the model's logits for row {} are NaN or infinite", tokens,
                         row);
                tensors.emplace_back(fmt::format("{}{}", kTensorPrefix, row), own.contiguous());
            }
        });
    io::write_safetensors(out, tensors);
    fmt::print(stderr, "{} rows written to {}\n", tensors.size(), out);
    return 0;
}

}  // namespace ether::app
