#include <ATen/Functions.h>

#include <algorithm>
#include <cstdio>
#include <iostream>
#include <nlohmann/json.hpp>
#include <numeric>
#include <sstream>

#include "command_line.h"
#include "ether/core/error.h"
#include "ether/core/utf8.h"
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
    const auto compute = [&](const nn::Pass& pass) { return model.logits(pass).to(at::kFloat); };
    const auto none = data::LabelType::none;
    tasks::for_each_batch(
        model, sequences, batch, none, compute, [&](const data::Batch& b, const at::Tensor& logits) {
            if (!result.defined())
                result = at::zeros({static_cast<int64_t>(sequences.size()), logits.size(1)});
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
    std::cout << printable(names[order[0]], 1000);  // a tab in a name would look like a column
    for (size_t i = 0; i < std::min<size_t>(order.size(), kShown); ++i)
        std::cout << fmt::format("\t{} {:.4f}", printable(names[order[i]], 1000), values[order[i]]);
    std::cout << "\n";
}

std::string read_all(std::istream& stream) {
    return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
}

// Every line of plain text is an example, blank ones too: the output has a line for each line of the input.
std::vector<data::Example> plain_lines(const std::string& text) {
    std::vector<data::Example> examples;
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);) {
        const auto number = static_cast<int64_t>(examples.size()) + 1;
        if (line.ends_with('\r')) line.pop_back();
        if (find_invalid_utf8(line) != std::string::npos)
            fail(ErrorKind::data, "standard input:{}: the line is not UTF-8", number);
        examples.push_back({.text = std::move(line), .pair = "", .label = {}, .line = number});
    }
    return examples;
}

bool plain(const std::string& format, const std::string& text) {
    const auto first = text.find_first_not_of(" \t\r\n");
    return format == "text" || (format == "auto" && (first == std::string::npos || text[first] != '{'));
}

std::vector<data::Example> read_input(const std::string& text, const std::string& format,
                                      const data::TableOptions& table) {
    const auto first = text.find_first_not_of(" \t\r\n");
    if (plain(format, text)) return plain_lines(text);
    if (first == std::string::npos) return {};
    std::istringstream stream(text);
    const auto kind = format == "csv"   ? data::TableFormat::csv
                      : format == "tsv" ? data::TableFormat::tsv
                                        : data::TableFormat::json;
    return data::read_examples(stream, "standard input", kind, table);
}

}  // namespace

int predict_main(int argc, char** argv) {
    LoadingOptions loading;
    data::TableOptions table;
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
    });
    line.add(column_fields(table));
    line.add({
        {.name = "batch", .value = &batch, .help = "examples in a batch", .low = 1, .high = 1e6},
        {.name = "json", .value = &json, .help = "print JSON lines"},
    });
    if (!line.parse(argc, argv)) return 0;

    const auto loaded = loading.load();
    if (loaded.task->head() != nn::Head::sequence_classification)
        fail(ErrorKind::usage, "predict classifies texts, but this model has no classification head");
    table = columns(line, table, loaded.columns);
    table.labels_required = false;
    const auto text = input.empty() ? read_all(std::cin) : std::string();
    if (!text.empty() && !table.pair_column.empty() && plain(format, text))
        fail(ErrorKind::usage,
             "this adapter was trained on pairs of texts: give JSONL with the columns \"{}\" and \"{}\", or "
             "a file",
             table.text_column, table.pair_column);
    auto examples = input.empty() ? read_input(text, format, table) : data::read_examples(input, table);
    if (examples.empty()) return 0;
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
