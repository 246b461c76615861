#include "ether/data/table.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <iterator>
#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>
#include <utility>

#include "ether/core/error.h"
#include "ether/core/json.h"
#include "ether/core/near_name.h"
#include "ether/core/utf8.h"
#include "ether/data/csv.h"
#include "ether/io/file.h"
#include "ether/io/json_reader.h"

namespace ether::data {
namespace fs = std::filesystem;
using nlohmann::json;
namespace {

constexpr size_t kShownColumns = 10;

struct Source {
    const std::string& name;
    const TableOptions& options;
    int64_t first_line = 1;
};

bool is_blank(std::string_view line) { return line.find_first_not_of(" \t\r") == std::string_view::npos; }

// Calls body(line, number) for each line that is not blank, without its LF or CRLF.
template <typename Body>
void for_each_line(const Source& source, std::string_view text, const Body& body) {
    for (int64_t number = source.first_line; !text.empty(); ++number) {
        const size_t end = text.find('\n');
        std::string_view line = text.substr(0, end);
        text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
        if (line.ends_with('\r')) line.remove_suffix(1);
        if (!is_blank(line)) body(line, number);
    }
}

[[noreturn]] void fail_column(const Source& source, int64_t line, const std::string& column,
                              const std::vector<std::string>& found) {
    std::string list;
    for (const std::string& name : std::span(found).first(std::min(found.size(), kShownColumns)))
        list += (list.empty() ? "\"" : ", \"") + printable(name) + "\"";
    if (found.size() > kShownColumns) list += ", ...";
    fail(ErrorKind::data, "{}:{}: no column \"{}\"; the columns are {}{}", source.name, line, column,
         list.empty() ? "none" : list, did_you_mean(column, found));
}

void require_label(const Source& source, const Example& example) {
    if (source.options.labels_required && std::holds_alternative<std::monostate>(example.label))
        fail(ErrorKind::data, "{}:{}: column \"{}\": expected a label, found none", source.name, example.line,
             source.options.label_column);
}

// --- JSON ---

const json& json_member(const Source& source, const json& object, const std::string& column, int64_t line) {
    const auto found = object.find(column);
    if (found != object.end()) return *found;
    std::vector<std::string> columns;
    for (const auto& item : object.items()) columns.push_back(item.key());
    fail_column(source, line, column, columns);
}

std::string json_text(const Source& source, const json& object, const std::string& column, int64_t line) {
    const json& value = json_member(source, object, column, line);
    if (!value.is_string())
        fail(ErrorKind::data, "{}:{}: column \"{}\": expected a string, found {}", source.name, line, column,
             io::describe(value));
    return value.get<std::string>();
}

Label json_label(const Source& source, const json& value, int64_t line) {
    if (value.is_null()) return {};
    if (value.is_boolean()) return std::string(value.get<bool>() ? "true" : "false");
    if (value.is_string()) {
        const auto& text = value.get_ref<const std::string&>();
        return text.empty() ? Label() : Label(text);
    }
    if (is_int64(value)) return value.get<int64_t>();
    if (value.is_number_float()) return value.get<double>();
    fail(ErrorKind::data, "{}:{}: column \"{}\": expected a string, a number or a 64-bit integer, found {}",
         source.name, line, source.options.label_column, io::describe(value));
}

Example json_example(const Source& source, const json& object, int64_t line) {
    if (!object.is_object())
        fail(ErrorKind::data, "{}:{}: expected a JSON object, found {}", source.name, line,
             io::describe(object));
    const TableOptions& options = source.options;
    Example example;
    example.line = line;
    example.text = json_text(source, object, options.text_column, line);
    if (!options.pair_column.empty()) example.pair = json_text(source, object, options.pair_column, line);
    if (!options.label_column.empty() && (options.labels_required || object.contains(options.label_column)))
        example.label = json_label(source, json_member(source, object, options.label_column, line), line);
    require_label(source, example);
    return example;
}

// The line on which each element of a (well-formed) JSON array begins.
std::vector<int64_t> element_lines(std::string_view text) {
    std::vector<int64_t> lines;
    int64_t line = 1;
    int depth = 0;
    bool in_string = false, expect_element = false;
    for (size_t i = 0; i < text.size(); ++i) {
        const char c = text[i];
        if (in_string) {
            if (c == '\\') ++i;
            in_string = c != '"';
            continue;
        }
        if (c == '\n') ++line;
        if (c == ' ' || c == '\t' || c == '\r' || c == '\n') continue;
        if (expect_element && c != ']') lines.push_back(line);
        expect_element = (depth == 0 && c == '[') || (depth == 1 && c == ',');
        in_string = c == '"';
        depth += (c == '[' || c == '{') - (c == ']' || c == '}');
    }
    return lines;
}

std::vector<Example> read_json(const Source& source, std::string_view text) {
    std::vector<Example> examples;
    const size_t start = text.find_first_not_of(" \t\r\n");
    if (start != std::string_view::npos && text[start] == '[') {
        const json array = io::parse_json(text, source.name);
        const std::vector<int64_t> lines = element_lines(text);
        ETHER_ASSERT(lines.size() == array.size());
        for (size_t i = 0; i < array.size(); ++i)
            examples.push_back(json_example(source, array[i], lines[i]));
    } else {
        for_each_line(source, text, [&](std::string_view line, int64_t number) {
            examples.push_back(json_example(source, io::parse_json(line, source.name, number), number));
        });
    }
    return examples;
}

// --- CSV, TSV and text ---

// NUL is legal UTF-8, but in these formats it only ever means a binary or UTF-16 file.
void refuse_nul(const Source& source, std::string_view text) {
    if (const size_t nul = text.find('\0'); nul != std::string_view::npos)
        fail(ErrorKind::data, "{}:{}: found a NUL byte; expected UTF-8 text, save the file as that",
             source.name, 1 + std::count(text.begin(), text.begin() + static_cast<ptrdiff_t>(nul), '\n'));
}

Label csv_label(const std::string& field) {
    if (field.empty()) return {};
    const char* end = field.data() + field.size();
    int64_t integer = 0;
    if (const auto [at, code] = std::from_chars(field.data(), end, integer);
        at == end && code == std::errc() && std::to_string(integer) == field)  // "01" is a name, not 1
        return integer;
    // Only what begins like a number: from_chars also takes "nan" and "infinity", which are words here.
    // Integers too long for 64 bits are identifiers rather than quantities.
    const bool is_digits = field.find_first_not_of("-0123456789") == std::string::npos;
    const bool is_word = field.find_first_of("0123456789") == std::string::npos;
    double real = 0;
    if (const auto [at, code] = std::from_chars(field.data(), end, real);
        !is_digits && !is_word && at == end && code == std::errc())
        return real;
    return field;
}

bool holds_return(const std::string& field) { return field.find('\r') != std::string::npos; }

// Index of a column by its name in the header, none if it is absent.
std::optional<size_t> find_column(const Source& source, const CsvRow& header, const std::string& column) {
    const auto found = std::ranges::find(header.fields, column);
    if (found == header.fields.end()) return std::nullopt;
    if (std::find(found + 1, header.fields.end(), column) != header.fields.end())
        fail(ErrorKind::data, "{}:{}: two columns are called \"{}\"", source.name, header.line, column);
    return static_cast<size_t>(found - header.fields.begin());
}

std::vector<Example> read_csv(const Source& source, std::string_view text, char separator) {
    refuse_nul(source, text);
    const std::vector<CsvRow> rows = parse_csv(
        text, separator, source.name, source.options.quoting == "none" ? Quoting::none : Quoting::minimal);
    std::vector<Example> examples;
    if (rows.empty()) return examples;
    const TableOptions& options = source.options;
    const auto column = [&](const std::string& name, bool required) {
        const auto index = find_column(source, rows[0], name);
        if (!index && rows.size() == 1 && std::ranges::any_of(rows[0].fields, holds_return))
            fail(ErrorKind::data,
                 "{}: its lines end in carriage returns alone; save it with line feeds, or with both",
                 source.name);
        if (!index && required) fail_column(source, rows[0].line, name, rows[0].fields);
        return index;
    };
    const size_t text_index = *column(options.text_column, true);
    const auto pair_index = column(options.pair_column, !options.pair_column.empty());
    const auto label_index =
        options.label_column.empty() ? std::nullopt : column(options.label_column, options.labels_required);
    for (const CsvRow& row : std::span(rows).subspan(1)) {
        Example example;
        example.line = row.line;
        example.text = row.fields[text_index];
        if (!options.pair_column.empty()) example.pair = row.fields[*pair_index];
        if (label_index) example.label = csv_label(row.fields[*label_index]);
        require_label(source, example);
        examples.push_back(std::move(example));
    }
    return examples;
}

std::vector<Example> read_lines(const Source& source, std::string_view text) {
    const TableOptions& options = source.options;
    refuse_nul(source, text);
    if (!options.pair_column.empty() || options.labels_required)
        fail(ErrorKind::data, "{}: a plain text file has no column \"{}\"; use JSON Lines, CSV or TSV",
             source.name, options.pair_column.empty() ? options.label_column : options.pair_column);
    std::vector<Example> examples;
    for_each_line(source, text, [&](std::string_view line, int64_t number) {
        examples.push_back({.text = std::string(line), .pair = {}, .label = {}, .line = number});
    });
    return examples;
}

// --- all formats ---

std::string kind_name(const Label& label) {
    constexpr const char* kNames[] = {"none", "an integer", "a number", "a string"};
    return kNames[label.index()];
}

void check_labels(const Source& source, const std::vector<Example>& examples) {
    const Example* first = nullptr;
    const auto is_text = [](const Example& example) {
        return std::holds_alternative<std::string>(example.label);
    };
    for (const Example& example : examples) {
        if (std::holds_alternative<std::monostate>(example.label)) continue;
        if (first == nullptr) first = &example;
        if (is_text(example) != is_text(*first))
            fail(ErrorKind::data,
                 "{}:{}: column \"{}\": found {}, but on line {} {}; all labels must be of one kind",
                 source.name, example.line, source.options.label_column, kind_name(example.label),
                 first->line, kind_name(first->label));
    }
}

std::vector<Example> read_text(std::string_view text, const std::string& name, TableFormat format,
                               const TableOptions& options, int64_t first_line) {
    if (const size_t bad = find_invalid_utf8(text); bad != std::string_view::npos)
        fail(ErrorKind::data, "{}:{}: not UTF-8: byte 0x{:02x}; save the file as UTF-8", name,
             first_line + std::count(text.begin(), text.begin() + static_cast<ptrdiff_t>(bad), '\n'),
             static_cast<unsigned char>(text[bad]));
    if (text.starts_with(kByteOrderMark)) text.remove_prefix(kByteOrderMark.size());
    const Source source{name, options, first_line};
    std::vector<Example> examples;
    switch (format) {
        case TableFormat::json:
            examples = read_json(source, text);
            break;
        case TableFormat::csv:
            examples = read_csv(source, text, ',');
            break;
        case TableFormat::tsv:
            examples = read_csv(source, text, '\t');
            break;
        case TableFormat::text:
            examples = read_lines(source, text);
            break;
    }
    if (examples.empty()) fail(ErrorKind::data, "{}: holds no examples", name);
    check_labels(source, examples);
    return examples;
}

}  // namespace

Fields TableOptions::fields() {
    return {
        {.name = "text-column", .value = &text_column, .help = "column of the text"},
        {.name = "pair-column", .value = &pair_column, .help = "column of a second text; empty: none"},
        {.name = "label-column",
         .value = &label_column,
         .help = "column of the label: text or integer = class, real = regression"},
        {.name = "quoting",
         .value = &quoting,
         .help = "in CSV and TSV; minimal: a field that begins with a quote ends with one; none: quotes are "
                 "letters like others, as in GLUE's files",
         .choices = {"minimal", "none"}},
    };
}

TableFormat table_format(const fs::path& path) {
    std::string extension = path.extension().string();
    std::ranges::transform(extension, extension.begin(), [](unsigned char c) { return std::tolower(c); });
    if (extension == ".jsonl" || extension == ".ndjson" || extension == ".json") return TableFormat::json;
    if (extension == ".csv") return TableFormat::csv;
    if (extension == ".tsv") return TableFormat::tsv;
    if (extension == ".txt") return TableFormat::text;
    fail(ErrorKind::data, "{}: unknown kind of table \"{}\"; expected .jsonl, .json, .csv, .tsv or .txt",
         path.string(), extension);
}

std::vector<Example> read_examples(const fs::path& path, const TableOptions& options) {
    // Opened first: that a file is absent is worth more than what its name's ending says.
    const std::string text = io::read_input(path);
    return read_text(text, path.string(), table_format(path), options, 1);
}

std::vector<Example> read_examples(std::istream& stream, const std::string& name, TableFormat format,
                                   const TableOptions& options, int64_t first_line) {
    const std::string text{std::istreambuf_iterator<char>(stream), {}};
    if (stream.bad()) fail(ErrorKind::file, "{}: cannot read", name);
    return read_text(text, name, format, options, first_line);
}

LabelKind label_kind(std::span<const Example> examples) {
    auto kind = LabelKind::none;
    for (const Example& example : examples) {
        if (example.label.index() == 0) continue;
        kind = static_cast<LabelKind>(example.label.index());
        if (kind != LabelKind::integer) break;  // among integers a real number may come yet
    }
    return kind;
}

}  // namespace ether::data
