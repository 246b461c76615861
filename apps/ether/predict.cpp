#include <ATen/Functions.h>

#include <algorithm>
#include <iostream>
#include <nlohmann/json.hpp>
#include <numeric>
#include <sstream>

#include "command_line.h"
#include "ether/core/error.h"
#include "ether/core/utf8.h"
#include "ether/tasks/classification.h"
#include "line_reader.h"
#include "loading.h"
#include "verb.h"

namespace ether::app {
namespace {

constexpr int64_t kShown = 3;  // classes in a line of plain output
// So many batches of what lies ready are read at once: enough for texts of like length to share batches.
constexpr int64_t kBatchesAtOnce = 64;

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

// Every line of plain text is an example, blank ones too: the output has a line for each line of the input.
std::vector<data::Example> plain_lines(const std::string& text, const std::string& name, int64_t number) {
    std::vector<data::Example> examples;
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line); ++number) {
        if (line.ends_with('\r')) line.pop_back();
        if (find_invalid_utf8(line) != std::string::npos)
            fail(ErrorKind::data, "{}:{}: the line is not UTF-8", name, number);
        examples.push_back({.text = std::move(line), .pair = {}, .label = {}, .line = number});
    }
    return examples;
}

data::TableFormat input_format(const std::string& format, const std::string& path, LineReader& input) {
    if (format == "text") return data::TableFormat::text;
    if (format == "jsonl") return data::TableFormat::json;
    if (format == "csv") return data::TableFormat::csv;
    if (format == "tsv") return data::TableFormat::tsv;
    if (!path.empty()) return data::table_format(path);
    // An object begins with a key, and a list with an object; a text may begin with a bracket as well.
    const auto start = input.start();
    const bool json = start == "{\"" || start == "{}" || start == "[{" || start == "[]";
    return json ? data::TableFormat::json : data::TableFormat::text;
}

void answer(const eval::LoadedAdapter& loaded, const text::Tokenizer& tokenizer,
            const std::vector<data::Example>& examples, const std::string& name, int64_t batch, bool json) {
    const auto sequences = loaded.task->encode(examples, name, tokenizer, {.max_length = loaded.max_length});
    const auto logits = all_logits(*loaded.model, sequences, batch);
    for (int64_t i = 0; i < logits.size(0); ++i)
        if (!logits[i].isfinite().all().item<bool>())
            fail(ErrorKind::numeric,
                 "{}:{}: the model's logits for this text are NaN or infinite: the weights overflow, or an "
                 "adapter that was made for another base",
                 name, examples[static_cast<size_t>(i)].line);
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
    std::cout.flush();
}

}  // namespace

int predict_main(int argc, char** argv) {
    LoadingOptions loading;
    data::TableOptions table;
    std::string path, format = "auto";
    int64_t batch = 64;
    bool json = false;
    CommandLine line("predict",
                     "Classifies texts from standard input or a file, one a line, as JSON or as a table, "
                     "whose labels are not read: for each the label and the most likely classes with their "
                     "probabilities, tab-separated, or one JSON object a line with all of them. Lines of "
                     "text and JSONL are answered as they come.",
                     "echo 'a small furry animal' | ether predict --model DIR --adapter runs/a");
    line.add(loading.fields(), {"model"});
    line.add(loading.device_fields());
    line.add({
        {.name = "input", .value = &path, .help = "file to read; empty: standard input"},
        {.name = "format",
         .value = &format,
         .help =
             "auto: by the file's ending; on standard input JSON if it begins with an object or a list of "
             "these, else text; jsonl: a list, too",
         .choices = {"auto", "text", "jsonl", "csv", "tsv"}},
    });
    auto table_fields = column_fields(table);
    std::erase_if(table_fields, [](const Field& field) { return field.name == "label-column"; });  // not read
    line.add(table_fields);
    line.add({
        {.name = "batch", .value = &batch, .help = "examples in a batch", .low = 1, .high = 1e6},
        {.name = "json", .value = &json, .help = "print JSON lines"},
    });
    if (!line.parse(argc, argv)) return 0;

    const auto loaded = loading.load();
    loaded.check_one_label();
    if (loaded.task->head() != nn::Head::sequence_classification)
        fail(ErrorKind::usage, "predict classifies texts, but this model has no classification head");
    table = columns(line, table, loaded.columns);
    table.labels_required = false;
    table.label_column.clear();
    const auto tokenizer = loaded.tokenizer();
    LineReader input(path);
    const auto kind = input_format(format, path, input);
    if (kind == data::TableFormat::text && !table.pair_column.empty() && !input.start().empty())
        fail(ErrorKind::usage,
             "this adapter was trained on pairs of texts: give JSONL, CSV or TSV with the columns \"{}\" and "
             "\"{}\"",
             table.text_column, table.pair_column);
    // A list ends with its last line, and so may a quoted field.
    const bool whole = kind == data::TableFormat::csv || kind == data::TableFormat::tsv ||
                       (kind == data::TableFormat::json && input.start().starts_with('['));
    for (int64_t line_number = 1; std::cout.good();) {
        const auto text = whole ? input.rest() : input.lines(kBatchesAtOnce * batch);
        if (text.empty()) break;
        if (kind == data::TableFormat::text) {
            answer(loaded, tokenizer, plain_lines(text, input.name(), line_number), input.name(), batch,
                   json);
        } else if (text.find_first_not_of(" \t\r\n") != std::string::npos) {
            std::istringstream stream(text);
            answer(loaded, tokenizer, data::read_examples(stream, input.name(), kind, table, line_number),
                   input.name(), batch, json);
        }
        line_number += std::count(text.begin(), text.end(), '\n');
    }
    return 0;
}

}  // namespace ether::app
