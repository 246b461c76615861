#include "ether/io/json_reader.h"

#include <nlohmann/json.hpp>

#include "io/test_files.h"

namespace ether::io {
namespace {

JsonObject object(std::string_view text) { return JsonObject::parse(text, "config.json"); }

TEST(JsonObject, ReadsEveryType) {
    const JsonObject o = object(R"({"i": 384, "d": 1e-12, "s": "gelu", "b": true, "n": null, "li": [1, 2],
                                    "ld": [1, 2.5], "ls": ["a"], "o": {"factor": 8}})");
    EXPECT_EQ(o.get<int64_t>("i"), 384);
    EXPECT_EQ(o.get<double>("d"), 1e-12);
    EXPECT_EQ(o.get<double>("i"), 384.0);
    EXPECT_EQ(o.get<std::string>("s"), "gelu");
    EXPECT_TRUE(o.get<bool>("b"));
    EXPECT_EQ(o.get<std::vector<int64_t>>("li"), (std::vector<int64_t>{1, 2}));
    EXPECT_EQ(o.get<std::vector<double>>("ld"), (std::vector<double>{1, 2.5}));
    EXPECT_EQ(o.get<std::vector<std::string>>("ls"), std::vector<std::string>{"a"});
    EXPECT_EQ(o.object("o").get<int64_t>("factor"), 8);
    EXPECT_FALSE(o.has("n"));
    EXPECT_EQ(o.get_or<int64_t>("n", 7), 7);
    EXPECT_EQ(o.get_or<int64_t>("absent", 7), 7);
    EXPECT_EQ(o.get_or<int64_t>("i", 7), 384);
    EXPECT_EQ(o.keys().size(), 9u);
}

TEST(JsonObject, NamesKeyExpectedAndFound) {
    const JsonObject o = object(R"({"hidden_size": "abc", "f": 1.5, "big": 9223372036854775808, "n": null,
                                    "mixed": [1, "a"], "rope": {"factor": "x"}, "list": [], "bool": 1})");
    EXPECT_FAILS(format, R"(config.json: key "hidden_size": expected an integer, found "abc" (string))",
                 o.get<int64_t>("hidden_size"));
    EXPECT_FAILS(format, "expected an integer, found 1.5 (number)", o.get<int64_t>("f"));
    EXPECT_FAILS(format, "expected an integer, found 9223372036854775808", o.get<int64_t>("big"));
    EXPECT_FAILS(format, R"(key "n": expected a number, found null)", o.get<double>("n"));
    EXPECT_FAILS(format, R"(key "hidden_sise" is missing, expected an integer; did you mean "hidden_size"?)",
                 o.get<int64_t>("hidden_sise"));
    EXPECT_FAILS(format, "expected a list of integers, found a list of 2",
                 o.get<std::vector<int64_t>>("mixed"));
    EXPECT_FAILS(format, R"(key "rope.factor": expected a number)", o.object("rope").get<double>("factor"));
    EXPECT_FAILS(format, R"(key "list": expected an object)", o.object("list"));
    EXPECT_FAILS(format, "expected true or false", o.get<bool>("bool"));
    EXPECT_FAILS(format, "expected an integer", o.get_or<int64_t>("f", 3))
        << "a wrong type is never a default";
    EXPECT_FAILS(format, "config.json: expected a JSON object, found a list of 1", object("[1]"));
}

TEST(JsonObject, InnerObjectOutlivesTheOuter) {
    const JsonObject inner = object(R"({"a": {"b": {"c": "deep"}}})").object("a").object("b");
    EXPECT_EQ(inner.get<std::string>("c"), "deep");
}

TEST(JsonObject, LoadsFilesAndNamesThem) {
    test::TempFolder folder;
    test::write_raw(folder / "config.json", "{\"a\": 1}\n");
    EXPECT_EQ(JsonObject::load(folder / "config.json").get<int64_t>("a"), 1);
    test::write_raw(folder / "config.json", "{\n  \"a\": 1,\n}");
    EXPECT_FAILS(format, (folder / "config.json").string() + ":3:1: not valid JSON",
                 JsonObject::load(folder / "config.json"));
    EXPECT_FAILS(file, "no.json: cannot open", JsonObject::load(folder / "no.json"));
}

TEST(ParseJson, RefusesWhatIsNotJson) {
    const auto parse = [](std::string_view text) { return parse_json(text, "f"); };
    EXPECT_FAILS(format, "f:1:1: not valid JSON", parse(""));
    EXPECT_FAILS(format, "f:1:8: not valid JSON", parse(R"({"a": 1)"));
    EXPECT_FAILS(format, "f:2:1: not valid JSON", parse("{}\n{}"));
    EXPECT_FAILS(format, "not valid JSON", parse("{\"a\": NaN}"));
    EXPECT_FAILS(format, "not valid JSON", parse("{\"a\": Infinity}"));
    EXPECT_FAILS(format, "f:3:12: not valid JSON: number overflow", parse("{\n\n  \"a\": 1e999}"));
    EXPECT_FAILS(format, "not valid JSON", parse(std::string("{\"a\": \"\0\"}", 10)));
    EXPECT_FAILS(format, "f:1:3: not valid JSON: a NUL byte", parse(std::string("{}\0]", 4)));
    EXPECT_FAILS(format, "f:2:2: not UTF-8: byte 0xff", parse("{\n \xff}"));
    EXPECT_FAILS(format, "not valid JSON", parse(R"({"a": "\ud800"})"));
    EXPECT_FAILS(format, R"(f:2:4: key "a" stands twice)", parse("{\"a\": 1,\n \"a\": 2}"));
    EXPECT_NO_THROW(parse(R"({"a": {"a": 1}, "b": [{"a": 1}, {"a": 2}]})"));
    EXPECT_FAILS(format, "train.jsonl:17:2:", parse_json("{a}", "train.jsonl", 17));
    EXPECT_FAILS(format, "train.jsonl:17:12: key", parse_json(R"({"a": 1, "a": 2})", "train.jsonl", 17));
    EXPECT_LT(std::string(test::error_of([&] { parse("\"" + std::string(1'000'000, 'x')); })->what()).size(),
              300u);
}

TEST(ParseJson, BoundsTheDepth) {
    const auto nested = [](size_t depth) { return std::string(depth, '[') + std::string(depth, ']'); };
    EXPECT_NO_THROW(parse_json(nested(kMaxJsonDepth), "f"));
    EXPECT_FAILS(format, "f:1:65: JSON is nested deeper than 64", parse_json(nested(kMaxJsonDepth + 1), "f"));
    EXPECT_FAILS(format, "nested deeper than 64", parse_json(std::string(5'000'000, '['), "f"));
    std::string objects;
    for (int i = 0; i < 100'000; ++i) objects += "{\"a\":";
    EXPECT_FAILS(format, "nested deeper than 64", parse_json(objects, "f"));
}

}  // namespace
}  // namespace ether::io
