#include <ATen/Functions.h>

#include <algorithm>
#include <cstdio>
#include <iostream>
#include <nlohmann/json.hpp>
#include <numeric>

#include "command_line.h"
#include "ether/core/error.h"
#include "ether/tasks/classification.h"
#include "loading.h"
#include "verb.h"

namespace ether::app {
namespace {

constexpr int64_t kShown = 3;  // classes in a line of plain output

// Rows of logits in the order of `sequences`.
at::Tensor all_logits(methods::AdaptedModel& model, const std::vector<data::Sequence>& sequences,
                      int64_t batch) {
    at::Tensor result;
    tasks::for_each_batch(sequences, batch, data::LabelType::none, [&](const data::Batch& b) {
        const auto logits = model.logits({.batch = b}).to(at::kFloat);
        if (!result.defined()) result = at::zeros({static_cast<int64_t>(sequences.size()), logits.size(1)});
        for (int64_t i = 0; i < b.size(); ++i) result[b.rows[static_cast<size_t>(i)]].copy_(logits[i]);
    });
    return result;
}

void print_class(const at::Tensor& probabilities, const std::vector<std::string>& names, bool json) {
    const auto p = probabilities.contiguous();
    const float* values = p.const_data_ptr<float>();
    std::vector<size_t> order(names.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return values[a] > values[b]; });
    if (json) {
        nlohmann::ordered_json object = {{"label", names[order[0]]}};
        for (const size_t c : order) object["probabilities"][names[c]] = values[c];
        std::cout << object.dump() << "\n";
        return;
    }
    std::cout << names[order[0]];
    for (size_t i = 0; i < std::min<size_t>(order.size(), kShown); ++i)
        std::cout << fmt::format("\t{} {:.4f}", names[order[i]], values[order[i]]);
    std::cout << "\n";
}

}  // namespace

int predict_main(int argc, char** argv) {
    LoadingOptions loading;
    data::TableOptions table{.labels_required = false};
    std::string input, format = "auto";
    int64_t batch = 64;
    bool json = false;
    CommandLine line(
        "predict",
        "Classifies texts from standard input or a file, one a line or as JSONL: for each the label and the "
        "most "
        "likely classes with their probabilities, tab-separated, or one JSON object a line with all of them.",
        "echo 'a small furry animal' | ether predict --model DIR --adapter runs/a");
    line.add(loading.fields(), {"model"});
    line.add({
        {.name = "input", .value = &input, .help = "file to read; empty: standard input"},
        {.name = "format",
         .value = &format,
         .help = "of standard input; auto: JSONL if it begins with {",
         .choices = {"auto", "text", "jsonl", "csv", "tsv"}},
        {.name = "text-column", .value = &table.text_column, .help = "column of the text"},
        {.name = "pair-column", .value = &table.pair_column, .help = "column of a second text; empty: none"},
        {.name = "label-column",
         .value = &table.label_column,
         .help = "column of a label, which is not used"},
        {.name = "batch", .value = &batch, .help = "examples in a batch", .low = 1, .high = 1e6},
        {.name = "json", .value = &json, .help = "print JSON lines"},
    });
    if (!line.parse(argc, argv)) return 0;

    const auto loaded = loading.load();
    if (loaded.task->head() != nn::Head::sequence_classification)
        fail(ErrorKind::usage, "predict classifies texts, but this model has no classification head");
    std::vector<data::Example> examples;
    if (input.empty()) {
        auto kind = data::TableFormat::text;
        if (format == "auto") format = (std::cin >> std::ws).peek() == '{' ? "jsonl" : "text";
        if (format == "jsonl") kind = data::TableFormat::json;
        if (format == "csv") kind = data::TableFormat::csv;
        if (format == "tsv") kind = data::TableFormat::tsv;
        examples = data::read_examples(std::cin, "standard input", kind, table);
    } else {
        examples = data::read_examples(input, table);
    }
    for (auto& example : examples) example.label = std::monostate();
    const auto tokenizer = text::Tokenizer::load(loaded.checkpoint.path());
    const auto sequences = loaded.task->encode(examples, input.empty() ? "standard input" : input, tokenizer,
                                               {.max_length = loaded.max_length});
    const auto logits = all_logits(*loaded.model, sequences, batch);
    const auto* classifier = dynamic_cast<const tasks::Classification*>(loaded.task.get());
    const auto probabilities = classifier ? logits.softmax(1) : logits;
    for (int64_t i = 0; i < probabilities.size(0); ++i) {
        if (classifier)
            print_class(probabilities[i], classifier->labels().names(), json);
        else if (json)
            std::cout << nlohmann::json{{"value", logits[i][0].item<float>()}}.dump() << "\n";
        else
            std::cout << fmt::format("{:.6g}\n", logits[i][0].item<float>());
    }
    return 0;
}

}  // namespace ether::app
