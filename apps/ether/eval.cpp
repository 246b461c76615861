#include <chrono>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "command_line.h"
#include "console.h"
#include "ether/core/error.h"
#include "loading.h"
#include "verb.h"

namespace ether::app {

int eval_main(int argc, char** argv) {
    LoadingOptions loading;
    data::TableOptions table;
    std::string data;
    int64_t batch = 64;
    bool json = false;
    CommandLine line("eval", "Scores a model with an adapter on a file of examples.",
                     "ether eval --model DIR --adapter runs/a --data test.jsonl --json");
    line.add(loading.fields(), {"model"});
    line.add(loading.device_fields());
    line.add({{.name = "data", .value = &data, .help = "examples: .jsonl, .json, .csv, .tsv or .txt"}},
             {"data"});
    line.add(column_fields(table));
    line.add({
        {.name = "batch", .value = &batch, .help = "examples in a batch", .low = 1, .high = 1e6},
        {.name = "json", .value = &json, .help = "print one JSON object"},
    });
    if (!line.parse(argc, argv)) return 0;

    const auto loaded = loading.load();
    loaded.check_one_label();
    const auto& task = *loaded.task;
    table = columns(line, table, loaded.columns);
    table.labels_required = task.labels_required();
    const auto tokenizer = loaded.tokenizer();
    const auto sequences =
        task.encode(data::read_examples(data, table), data, tokenizer, {.max_length = loaded.max_length});
    const auto start = std::chrono::steady_clock::now();
    const auto scores = task.evaluate(*loaded.model, sequences, batch);
    if (!std::isfinite(scores.at("loss")))
        fail(ErrorKind::numeric,
             "the loss on {} is {}: the weights overflow, or an adapter that was made for another base", data,
             scores.at("loss"));
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    if (json) {
        nlohmann::json object = scores;
        object["examples"] = sequences.size();
        object["seconds"] = seconds;
        std::printf("%s\n", object.dump().c_str());
    } else {
        fmt::print("{} examples in {}: {}\n", sequences.size(), duration_text(seconds), scores_text(scores));
    }
    return 0;
}

}  // namespace ether::app
