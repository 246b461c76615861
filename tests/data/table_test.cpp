#include "ether/data/table.h"

#include <sstream>

#include "ether/data/csv.h"
#include "io/test_files.h"

namespace ether::data {
namespace {

using namespace std::string_literals;

std::vector<Example> read(const std::string& text, TableFormat format, const TableOptions& options = {}) {
    std::istringstream stream(text);
    return read_examples(stream, "train", format, options);
}
std::vector<Example> json(const std::string& text, const TableOptions& options = {}) {
    return read(text, TableFormat::json, options);
}
std::vector<Example> csv(const std::string& text, const TableOptions& options = {}) {
    return read(text, TableFormat::csv, options);
}
const TableOptions kPairs{.text_column = "premise", .pair_column = "hypothesis"};
const TableOptions kOptional{.labels_required = false};

TEST(JsonTable, ReadsLines) {
    const auto examples = json(
        "\xef\xbb\xbf{\"text\": \"a\\u0000\\n\", \"label\": \"yes\", \"other\": [1]}\r\n"
        "\n  \t\r\n"
        "{\"label\": true, \"text\": \"\xc3\xa9\"}");
    ASSERT_EQ(examples.size(), 2u);
    EXPECT_EQ(examples[0].text, "a\0\n"s);
    EXPECT_EQ(examples[0].label, Label("yes"s));
    EXPECT_EQ(examples[0].line, 1);
    EXPECT_EQ(examples[1].text, "\xc3\xa9");
    EXPECT_EQ(examples[1].label, Label("true"s));
    EXPECT_EQ(examples[1].line, 4);
    const auto pair = json(R"({"premise": "p", "hypothesis": "h", "label": 2})", kPairs);
    EXPECT_EQ(pair[0].pair, "h");
    EXPECT_EQ(pair[0].label, Label(int64_t{2}));
}

TEST(JsonTable, ReadsAnArrayWithLines) {
    const auto examples = json(
        "\n[\n {\"text\": \"[{,\\\"\", \"label\": 1},\n\n {\"text\":\n \"b\", \"label\": 2}, {\"text\": "
        "\"c\", \"label\": 3, \"x\": [1, {\"y\": [2, 3]}]}\n]\n");
    ASSERT_EQ(examples.size(), 3u);
    EXPECT_EQ(examples[0].text, "[{,\"");
    EXPECT_EQ(examples[0].line, 3);
    EXPECT_EQ(examples[1].line, 5);
    EXPECT_EQ(examples[2].line, 6);
    EXPECT_FAILS(data, "train:4: column \"text\": expected a string",
                 json("[\n{\"text\": \"a\", \"label\": 1},\n\n{\"text\": 3, \"label\": 1}]"));
    EXPECT_FAILS(data, "train: holds no examples", json("[ ]"));
    EXPECT_FAILS(format, "train:2:1: not valid JSON", json("[{},\n]"));
    EXPECT_FAILS(data, "train:1: expected a JSON object, found 1", json("[1, 2]"));
}

TEST(JsonTable, ManyLongLines) {
    std::string text;
    const std::string long_text(1'000'000, 'x');
    for (int i = 0; i < 5; ++i) text += "{\"text\": \"" + long_text + "\", \"label\": 0}\n";
    const auto examples = json(text);
    ASSERT_EQ(examples.size(), 5u);
    EXPECT_EQ(examples[4].text, long_text);
}

TEST(JsonTable, NamesLineColumnAndReason) {
    const std::string good = "{\"text\": \"a\", \"label\": \"x\"}\n";
    EXPECT_FAILS(data, "train: holds no examples", json(""));
    EXPECT_FAILS(data, "train: holds no examples", json("\n\n"));
    EXPECT_FAILS(format, "train:2:10: not valid JSON", json(good + "{\"text\": }"));
    EXPECT_FAILS(format, "train:2:65: JSON is nested deeper", json(good + std::string(100'000, '[')));
    EXPECT_FAILS(data, "train:3: not UTF-8: byte 0xe9",
                 json(good + "\n{\"text\": \"caf\xe9\", \"label\": \"x\"}"));
    EXPECT_FAILS(data, "train:2: expected a JSON object, found \"a\" (string)", json(good + "\"a\""));
    EXPECT_FAILS(data,
                 R"(train:2: no column "text"; the columns are "label", "tekst"; did you mean "tekst"?)",
                 json(good + R"({"tekst": "a", "label": "x"})"));
    EXPECT_FAILS(data, "the columns are none", json("{}"));
    EXPECT_FAILS(data, R"(train:2: column "text": expected a string, found null)",
                 json(good + R"({"text": null, "label": "x"})"));
    EXPECT_FAILS(data,
                 R"(train:2: no column "label"; the columns are "lable", "text"; did you mean "lable"?)",
                 json(good + R"({"text": "a", "lable": "x"})"));
    EXPECT_FAILS(data, R"(train:2: column "label": expected a label, found none)",
                 json(good + R"({"text": "a", "label": null})"));
    EXPECT_FAILS(data, "expected a label, found none", json(R"({"text": "a", "label": ""})"));
    EXPECT_FAILS(data, "found a list of 1", json(R"({"text": "a", "label": [1]})"));
    EXPECT_FAILS(data, "found 9223372036854775808", json(R"({"text": "a", "label": 9223372036854775808})"));
    EXPECT_FAILS(data, "no column \"hypothesis\"", json(R"({"premise": "a", "label": 1})", kPairs));
}

TEST(Table, LabelsMayBeAbsentWhenTold) {
    const auto examples = json(
        "{\"text\": \"a\"}\n{\"text\": \"b\", \"label\": null}\n{\"text\": \"c\", \"label\": 1}", kOptional);
    EXPECT_EQ(examples[0].label, Label());
    EXPECT_EQ(examples[1].label, Label());
    EXPECT_EQ(examples[2].label, Label(int64_t{1}));
    EXPECT_EQ(label_kind(examples), LabelKind::integer);
    EXPECT_EQ(csv("text,label\na,\nb,x\n", kOptional)[0].label, Label());
    EXPECT_EQ(label_kind(csv("text\na\n", kOptional)), LabelKind::none);
}

TEST(Table, LabelsAgreeInKind) {
    EXPECT_EQ(csv("text,label\na,01\nb,x\n")[0].label,
              Label(std::string("01")));  // a name, not the integer 1
    const auto mixed = csv("text,label\na,1\nb,2.5\nc,-3e2\n");
    EXPECT_EQ(mixed[0].label, Label(int64_t{1})) << "so that a classifier stops at the number that is real";
    EXPECT_EQ(mixed[2].label, Label(-300.0));
    EXPECT_EQ(label_kind(mixed), LabelKind::real);
    EXPECT_FAILS(data, "train:4: column \"label\": found a string, but on line 2 an integer",
                 csv("text,label\na,1\nb,2\nc,x\nd,3\n"));
    EXPECT_FAILS(data, "train:2: column \"label\": found a number, but on line 1 a string",
                 json("{\"text\": \"a\", \"label\": \"1\"}\n{\"text\": \"a\", \"label\": 0.5}"));
    for (const std::string word : {"nan", "inf", "-inf", "infinity", "1x", "0x10", "1,5", "1e999", "-", ".",
                                   "e5", " 1", "12345678901234567890", "--1"})
        EXPECT_EQ(csv("text,label\na,\"" + word + "\"\n")[0].label, Label(word)) << word;
    EXPECT_EQ(csv("text,label\na,-9223372036854775808\n")[0].label, Label(INT64_MIN));
    EXPECT_EQ(csv("text,label\na,.5\n")[0].label, Label(0.5));
}

TEST(CsvTable, FollowsRfc4180) {
    const auto examples =
        csv("\xef\xbb\xbflabel,text,note\r\n"
            "1,\"a, \"\"b\"\"\r\nc\",x\r\n"
            "\r\n"
            "2,say \"hi\",\r\n"
            "3,,\"\"");
    ASSERT_EQ(examples.size(), 3u);
    EXPECT_EQ(examples[0].text, "a, \"b\"\r\nc");
    EXPECT_EQ(examples[0].line, 2);
    EXPECT_EQ(examples[1].text, "say \"hi\"");
    EXPECT_EQ(examples[1].line, 5);
    EXPECT_EQ(examples[2].text, "");
    EXPECT_EQ(examples[2].label, Label(int64_t{3}));
    const auto tsv = read("premise\thypothesis\tlabel\na, b\t\"c\td\"\tyes\n", TableFormat::tsv, kPairs);
    EXPECT_EQ(tsv[0].text, "a, b");
    EXPECT_EQ(tsv[0].pair, "c\td");
}

TEST(CsvTable, TakesQuotesAsLettersWhereTold) {
    const TableOptions none{.quoting = "none"};
    const auto tsv = "text\tlabel\n\"never closed\t1\n\"closed\" and more\t0\nsay \"\"\t1\n";
    const auto examples = read(tsv, TableFormat::tsv, none);
    ASSERT_EQ(examples.size(), 3u);
    EXPECT_EQ(examples[0].text, "\"never closed");
    EXPECT_EQ(examples[1].text, "\"closed\" and more");
    EXPECT_EQ(examples[2].text, "say \"\"");
    EXPECT_FAILS(data, "give --quoting none", read(tsv, TableFormat::tsv));
    EXPECT_FAILS(data, "never closed; where quotes are letters like others, give --quoting none",
                 csv("text,label\n\"a,1\n"));
    EXPECT_FAILS(data, "train:2: found 3 fields where the first row has 2",
                 read("text,label\n\"a,b\",1\n", TableFormat::csv, none));
}

TEST(CsvTable, NamesLineAndReason) {
    EXPECT_FAILS(data, "train: holds no examples", csv(""));
    EXPECT_FAILS(data, "train: holds no examples", csv("text,label\n\n"));
    EXPECT_FAILS(data, R"(train:1: no column "text"; the columns are "Text", "label"; did you mean "Text"?)",
                 csv("Text,label\na,1\n"));
    EXPECT_FAILS(data, "no column \"label\"", csv("text,x\na,1\n"));
    EXPECT_FAILS(data, "two columns are called \"text\"", csv("text,text,label\na,b,1\n"));
    EXPECT_FAILS(data, "train:3: found 3 fields where the first row has 2", csv("text,label\na,1\nb,c,1\n"));
    EXPECT_FAILS(data, "train:3: found 1 fields", csv("text,label\na,1\nb\n"));
    EXPECT_FAILS(data, "train:3: a quoted field begins here and is never closed",
                 csv("text,label\na,1\n\"b,1\nc,1\n"));
    EXPECT_FAILS(data, "train:3: after a field's closing quote", csv("text,label\n\"a\nb\"x,1\n"));
    EXPECT_FAILS(data, "train:2: found a NUL byte", csv("text,label\na\0,1\n"s));
    EXPECT_FAILS(data, "train:1: not UTF-8: byte 0xff", csv("\xff\xfet\0e\0"s));
    EXPECT_FAILS(data, "train:3: column \"label\": expected a label, found none",
                 csv("text,label\na,1\nb,\n"));
}

TEST(TextTable, ReadsLines) {
    const auto examples = read("first\r\n\n  second \nlast", TableFormat::text, kOptional);
    ASSERT_EQ(examples.size(), 3u);
    EXPECT_EQ(examples[0].text, "first");
    EXPECT_EQ(examples[1].text, "  second ");
    EXPECT_EQ(examples[2].line, 4);
    EXPECT_FAILS(data, "has no column \"label\"", read("a", TableFormat::text));
    EXPECT_FAILS(data, "has no column \"b\"",
                 read("a", TableFormat::text, {.pair_column = "b", .labels_required = false}));
    EXPECT_FAILS(data, "train:2: found a NUL", read("a\n\0"s, TableFormat::text, kOptional));
}

TEST(Table, ChoosesTheFormatByExtension) {
    const test::TempFolder folder;
    test::write_raw(folder / "a.JSONL", "{\"text\": \"a\", \"label\": 1}");
    EXPECT_EQ(read_examples(folder / "a.JSONL").size(), 1u);
    EXPECT_EQ(table_format("x.tsv"), TableFormat::tsv);
    EXPECT_EQ(table_format("x.json"), TableFormat::json);
    EXPECT_EQ(table_format("x.txt"), TableFormat::text);
    EXPECT_FAILS(data, "a.parquet: unknown kind of table \".parquet\"", table_format("a.parquet"));
    EXPECT_FAILS(data, "unknown kind of table \"\"", table_format("train"));
    EXPECT_FAILS(file, "none.csv: cannot open: No such file", read_examples(folder / "none.csv"));
    EXPECT_FAILS(file, "none: cannot open: No such file", read_examples(folder / "none"));
    EXPECT_FAILS(file, "cannot read: Is a directory", read_examples(folder.path()));
    test::write_raw(folder / "train", "");
    EXPECT_FAILS(data, "train: unknown kind of table \"\"", read_examples(folder / "train"));
    test::write_raw(folder / "b.csv", "text,label\n");
    EXPECT_FAILS(data, (folder / "b.csv").string() + ": holds no examples", read_examples(folder / "b.csv"));
}

}  // namespace
}  // namespace ether::data
