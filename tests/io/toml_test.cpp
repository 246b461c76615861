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
        "lr = 1e-3\nclip = -.5\nforce = true\n"
        "'modules-to-save' = [ 'a', # first\n  \"b\",\n]\nempty = []",
        "f");
    ASSERT_EQ(entries.size(), 7u);
    EXPECT_EQ(entries[0].key, "model");
    EXPECT_EQ(entries[0].values, Values{"C:\\new # \"x\""});
    EXPECT_EQ(entries[0].line, 3);
    EXPECT_EQ(entries[1].values, Values{"a \"b\" \xc3\xa9"});
    EXPECT_EQ(entries[2].values, Values{"1e-3"});
    EXPECT_EQ(entries[3].values, Values{"-.5"});
    EXPECT_EQ(entries[4].values, Values{"true"});
    EXPECT_EQ(entries[5].key, "modules-to-save");
    EXPECT_EQ(entries[5].values, (Values{"a", "b"}));
    EXPECT_EQ(entries[6].values, Values{});
    EXPECT_EQ(entries[6].line, 11);
    EXPECT_TRUE(parse_toml("\xef\xbb\xbf", "f").empty());
}

TEST(Toml, NamesLineAndReason) {
    const auto parse = [](const std::string& text) { parse_toml(text, "f"); };
    EXPECT_FAILS(format, "f:2: the text \"x is never closed; end it with \"",
                 parse("a = 1\nmodel = \"x\nb = \"y\"\n"));
    EXPECT_FAILS(format, "f:1: the text 'x is never closed; end it with '", parse("model = 'x"));
    EXPECT_FAILS(format, "f:1: the text \"x\\ is never closed", parse("model = \"x\\"));
    EXPECT_FAILS(format,
                 "f:2: options stand at the top level of the file, as key = value; remove the line [train]",
                 parse("# mine\n[train]\nmodel = 'x'\n"));
    EXPECT_FAILS(format, "f:1: texts of several lines are not read", parse("model = \"\"\"x\n\"\"\""));
    EXPECT_FAILS(format, "f:1: expected = after \"model\"", parse("model\n"));
    EXPECT_FAILS(format, "f:1: expected a value", parse("model =\nlr = 1"));
    EXPECT_FAILS(format,
                 "f:1: expected a number, true or false, found lora; a text stands in quotes: \"lora\"",
                 parse("method = lora"));
    EXPECT_FAILS(format, "f:1: expected the line's end after the value of \"lr\", found 2",
                 parse("lr = 1 2"));
    EXPECT_FAILS(format, "f:3: expected , or ] in the list that begins on line 1",
                 parse("a = ['x',\n 'y'\nb = 1"));
    EXPECT_FAILS(format, "f:1: expected a value", parse("a = ["));
    EXPECT_FAILS(format, "f:2: the key \"a\" stands here for the second time", parse("a = 1\na = 2"));
    EXPECT_FAILS(format, "f:1: \"C:\\new\\x\" holds an escape that is not known",
                 parse("a = \"C:\\new\\x\""));
    EXPECT_FAILS(format, "f:1: expected key = value, found = 3", parse("= 3"));
}

}  // namespace
}  // namespace ether::io
