// Examples from a user's file: JSON Lines or a JSON array, CSV, TSV, or plain text with one example a line.
// Stateless. Whatever is wrong with the file is an Error of kind `data` (or `format` for JSON's syntax) that
// opens with `name:line:`; texts are UTF-8.
#pragma once

#include <cstdint>
#include <filesystem>
#include <istream>
#include <optional>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "ether/core/options.h"

namespace ether::data {

using Label = std::variant<std::monostate, int64_t, double, std::string>;  // monostate: none

struct Example {
    std::string text;
    std::optional<std::string> pair;  // second text, which may be empty; none without a pair column
    Label label;
    int64_t line = 0;  // where the example begins in its file, from 1
};

struct TableOptions {
    std::string text_column = "text";
    std::string pair_column = "";        // "": texts are single
    std::string label_column = "label";  // "": labels are not read
    std::string quoting = "minimal";     // of CSV and TSV, as pandas calls it: minimal, none
    bool labels_required = true;         // false: a missing column or an empty label reads as no label

    // What users choose; labels_required follows from the task.
    Fields fields();
};

enum class TableFormat { json, csv, tsv, text };

// By extension, in any case: .jsonl .ndjson .json | .csv | .tsv | .txt. Others are an error.
TableFormat table_format(const std::filesystem::path& path);

// Reads all examples, at least one. A leading byte order mark is dropped, blank lines are skipped.
// - JSON: objects; texts are strings; a label is an integer, a number, a string, or true/false (read as these
// words).
// - CSV and TSV: the first row names the columns. Labels that look like 64-bit integers become integers, like
// numbers
//   become doubles, others stay strings.
// - text: the text column alone, whatever it is called; no pairs, no labels.
// null and the empty string are no label. Strings among numbers are an error; integers may stand among
// doubles.
std::vector<Example> read_examples(const std::filesystem::path& path, const TableOptions& options = {});
// first_line: the number of the stream's first line, where that is a part of a file of JSON Lines or text.
std::vector<Example> read_examples(std::istream& stream, const std::string& name, TableFormat format,
                                   const TableOptions& options = {}, int64_t first_line = 1);

enum class LabelKind { none, integer, real, text };  // in the order of Label's alternatives

// The kind that the examples' labels share, real if any of them is; none if no example has one.
LabelKind label_kind(std::span<const Example> examples);

}  // namespace ether::data
