#include "ether/io/toml.h"

#include "io/test_files.h"

namespace ether::io {
namespace {

using Values = std::vector<std::string>;

TEST(Toml, ReadsEveryKindOfValue) {
    const auto entries = parse_toml(
        "# a comment\r\n\r\n"
        "model = 'C:\\new # \"x\"'  # a path\r\n"
        "text-column=\"a \\\"b\\\" \\u00e9\"\n"
        "lr = 1e-3\nclip = -0.5\nforce = true\n"
        "'modules-to-save' = [ 'a', # first\n  \"b\",\n]\nempty = []",
        "f");
    ASSERT_EQ(entries.size(), 7u);
    EXPECT_EQ(entries[0].key, "model");
    EXPECT_EQ(entries[0].values, Values{"C:\\new # \"x\""});
    EXPECT_EQ(entries[0].line, 3);
    EXPECT_EQ(entries[1].values, Values{"a \"b\" \xc3\xa9"});
    EXPECT_EQ(entries[2].values, Values{"0.001"});
    EXPECT_EQ(entries[3].values, Values{"-0.5"});
    EXPECT_EQ(entries[4].values, Values{"true"});
    EXPECT_EQ(entries[5].key, "modules-to-save");
    EXPECT_EQ(entries[5].values, (Values{"a", "b"}));
    EXPECT_EQ(entries[6].values, Values{});
    EXPECT_EQ(entries[6].line, 11);
    EXPECT_TRUE(parse_toml("\xef\xbb\xbf", "f").empty());
}

TEST(Toml, NamesLineAndReason) {
    const auto parse = [](const std::string& text) { parse_toml(text, "f"); };
    EXPECT_FAILS(format, ", in: model = \"x; a text ends on its line, with the quote that it began with",
                 parse("a = 1\nmodel = \"x\nb = \"y\"\n"));
    EXPECT_FAILS(format, "f:1: Error while parsing string: encountered end-of-file, in: model = 'x; a text",
                 parse("model = 'x"));
    for (const char* table : {"[train]", "[[train]]", "train.lr = 1", "train = {lr = 1}"})
        EXPECT_FAILS(format,
                     fmt::format("f:2: options stand at the top level of the file, as key = value; remove "
                                 "the line {}",
                                 table),
                     parse(fmt::format("# mine\n{}\nmodel = 'x'\n", table)));
    EXPECT_FAILS(format, "f:1: Error while parsing key-value pair: expected '='", parse("model\n"));
    EXPECT_FAILS(format, "expected value, saw '\\n', in: model =", parse("model =\nlr = 1"));
    EXPECT_FAILS(format, "could not determine value type, in: method = lora; a text stands in quotes",
                 parse("method = lora"));
    EXPECT_FAILS(format, "f:1: Error while parsing key-value pair: expected a comment or whitespace, saw '2'",
                 parse("lr = 1 2"));
    EXPECT_FAILS(format, "f:3: Error while parsing array: expected comma or closing ']', saw 'b', in: b = 1",
                 parse("a = ['x',\n 'y'\nb = 1"));
    EXPECT_FAILS(format, "encountered end-of-file, in: a = [", parse("a = ["));
    EXPECT_FAILS(format, "f:2: Error while parsing key-value pair: cannot redefine existing integer 'a'",
                 parse("a = 1\na = 2"));
    EXPECT_FAILS(format, "in: a = \"C:\\new\\x\"; in single quotes a backslash is itself",
                 parse("a = \"C:\\new\\x\""));
    EXPECT_FAILS(format, "f:1: Error while parsing root table: expected keys", parse("= 3"));
    EXPECT_FAILS(format, "f:2: \"day\": expected a text in quotes, a number, true or false",
                 parse("\nday = 1979-05-27"));
    EXPECT_FAILS(format, "f:1: \"a\": expected a text in quotes", parse("a = [[1]]"));
    EXPECT_FAILS(format, "f:1: Error while parsing key-value pair: expected '=', saw '\xc3\x9b'",
                 parse("k \xc3\x9b = 1"));
    EXPECT_FAILS(format, "f: not valid TOML; options stand as key = value", parse("[[[k = 1"));
    EXPECT_FAILS(format, "f:1: Encountered invalid utf-8 sequence, in: a = \\xff", parse("a = \xff"));
}

}  // namespace
}  // namespace ether::io
