#include "ether/core/options.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>

#include <nlohmann/json.hpp>

#include "ether/core/error.h"
#include "ether/core/random.h"

namespace ether {
namespace {

struct Sample {
    bool flag = false;
    int64_t count = 3;
    double rate = 0.5;
    std::optional<double> share;
    std::string side = "input";
    std::vector<std::string> names;
    NumbersByName ranks;
    std::vector<int64_t> tokens;

    Fields fields() {
        return {{.name = "flag", .value = &flag, .help = "a switch"},
                {.name = "count", .value = &count, .help = "a count", .low = 1, .high = 10},
                {.name = "learning-rate", .value = &rate, .help = "a rate", .low = 0, .high = 1, .key = "lr"},
                {.name = "side", .value = &side, .help = "a side", .choices = {"input", "output"}},
                {.name = "some-names", .value = &names, .help = "names"},
                {.name = "tokens", .value = &tokens, .help = "numbers of tokens", .low = 0},
                {.name = "ranks", .value = &ranks, .help = "ranks by name", .low = 1, .high = 100},
                {.name = "share", .value = &share, .help = "a share, if any", .low = 0.1, .high = 1}};
    }
};

std::string message_of(const std::function<void()>& action) {
    try {
        action();
    } catch (const Error& error) {
        return error.what();
    }
    return "no error";
}

TEST(Options, SetParsesEveryKind) {
    Sample sample;
    const auto fields = sample.fields();
    find_field(fields, "flag")->set("true");
    find_field(fields, "count")->set("7");
    find_field(fields, "learning-rate")->set("1e-3");
    find_field(fields, "side")->set("output");
    find_field(fields, "some-names")->set("a,b");
    EXPECT_TRUE(sample.flag);
    EXPECT_EQ(sample.count, 7);
    EXPECT_EQ(sample.rate, 1e-3);
    EXPECT_EQ(sample.side, "output");
    EXPECT_EQ(sample.names, (std::vector<std::string>{"a", "b"}));
    EXPECT_EQ(find_field(fields, "absent"), nullptr);
}

TEST(Options, ANumberMayBeAbsent) {
    Sample sample;
    const auto fields = sample.fields();
    const auto& share = *find_field(fields, "share");
    share.check();
    EXPECT_EQ(share.text(), "");
    EXPECT_TRUE(share.to_json().is_null());
    share.set("0.25");
    EXPECT_EQ(sample.share, 0.25);
    EXPECT_EQ(share.text(), "0.25");
    EXPECT_EQ(message_of([&] { share.set("0"); }), "--share: 0 is out of range, expected 0.1 to 1");
    share.from_json(nlohmann::json(), "test.json");
    EXPECT_EQ(sample.share, std::nullopt);
}

TEST(Options, Integers) {
    Sample sample;
    const auto fields = sample.fields();
    const auto& tokens = *find_field(fields, "tokens");
    tokens.set("7, 50257");
    EXPECT_EQ(sample.tokens, (std::vector<int64_t>{7, 50257}));
    EXPECT_EQ(tokens.text(), "7,50257");
    EXPECT_EQ(tokens.to_json().dump(), "[7,50257]");
    tokens.from_json({3}, "test.json");
    EXPECT_EQ(sample.tokens, std::vector<int64_t>{3});
    tokens.from_json(nlohmann::json(), "test.json");
    EXPECT_TRUE(sample.tokens.empty());
    EXPECT_TRUE(tokens.to_json().is_null());
    EXPECT_EQ(message_of([&] { tokens.set("a"); }), "--tokens: expected integers, got \"a\"");
    EXPECT_EQ(message_of([&] { tokens.set("-1"); }), "--tokens: -1 is out of range, expected at least 0");
    for (const auto& wrong : {nlohmann::json{1.5}, nlohmann::json{"7"}, nlohmann::json{true},
                              nlohmann::json(7), nlohmann::json{uint64_t{1} << 63}})
        EXPECT_NE(message_of([&] { tokens.from_json(wrong, "test.json"); }).find("key \"tokens\" has"),
                  std::string::npos);
}

TEST(Options, NumbersByName) {
    Sample sample;
    const auto fields = sample.fields();
    const auto& ranks = *find_field(fields, "ranks");
    ranks.set("q_proj=16, layers.0.*=4.5");
    EXPECT_EQ(sample.ranks, (NumbersByName{{"q_proj", 16}, {"layers.0.*", 4.5}}));
    EXPECT_EQ(ranks.text(), "q_proj=16,layers.0.*=4.5");
    EXPECT_EQ(ranks.to_json().dump(), R"({"layers.0.*":4.5,"q_proj":16})");
    ranks.from_json({{"v_proj", 8}}, "test.json");
    EXPECT_EQ(sample.ranks, (NumbersByName{{"v_proj", 8}}));
    ranks.from_json(nlohmann::json(), "test.json");
    EXPECT_TRUE(sample.ranks.empty());
    ranks.set(R"(layer\.[0-9]{1,2}\.q=4,v=2)");
    EXPECT_EQ(sample.ranks, (NumbersByName{{R"(layer\.[0-9]{1,2}\.q)", 4}, {"v", 2}}));
    EXPECT_EQ(message_of([&] { ranks.set("=4"); }), "--ranks: \"=4\" is not of the form NAME=NUMBER");
    EXPECT_EQ(message_of([&] { ranks.set("q_proj"); }), "--ranks: \"q_proj\" is not of the form NAME=NUMBER");
    EXPECT_EQ(message_of([&] { ranks.set("q_proj=x"); }), "--ranks: expected a number, got \"x\"");
    EXPECT_EQ(message_of([&] { ranks.set("q_proj=0"); }), "--ranks: 0 is out of range, expected 1 to 100");
    for (const auto& wrong : {nlohmann::json::array(), nlohmann::json({{"q_proj", "8"}})})
        EXPECT_NE(
            message_of([&] { ranks.from_json(wrong, "test.json"); }).find("test.json: key \"ranks\" has"),
            std::string::npos);
}

TEST(Options, ErrorsNameFieldValueAndRange) {
    Sample sample;
    const auto fields = sample.fields();
    EXPECT_EQ(message_of([&] { find_field(fields, "count")->set("0"); }),
              "--count: 0 is out of range, expected 1 to 10");
    EXPECT_EQ(message_of([&] { find_field(fields, "count")->set("7x"); }),
              "--count: expected an integer, got \"7x\"");
    EXPECT_EQ(message_of([&] { find_field(fields, "learning-rate")->set("nan"); }),
              "--learning-rate: nan is out of range, expected 0 to 1");
    EXPECT_EQ(message_of([&] { find_field(fields, "side")->set("left"); }),
              "--side: \"left\" is not known, expected one of input, output");
    EXPECT_EQ(message_of([&] { find_field(fields, "side")->set("inptu"); }),
              "--side: \"inptu\" is not known, expected one of input, output; did you mean \"input\"?");
    EXPECT_EQ(message_of([&] { find_field(fields, "flag")->set("yes"); }),
              "--flag: expected true or false, got \"yes\"");
}

TEST(Options, JsonRoundTrip) {
    Sample sample, other;
    sample.count = 9;
    sample.rate = 0.25;
    sample.names = {"x"};
    sample.share = 0.5;
    const auto from = sample.fields(), to = other.fields();
    for (size_t i = 0; i < from.size(); ++i) to[i].from_json(from[i].to_json(), "test.json");
    EXPECT_EQ(other.count, 9);
    EXPECT_EQ(other.rate, 0.25);
    EXPECT_EQ(other.names, sample.names);
    EXPECT_EQ(other.share, 0.5);
    EXPECT_EQ(find_field(from, "learning-rate")->config_key(), "lr");
    EXPECT_EQ(find_field(from, "some-names")->config_key(), "some_names");
    EXPECT_NE(message_of([&] { to[1].from_json("seven", "test.json"); }).find("test.json: key \"count\""),
              std::string::npos);
}

TEST(Random, IsAFunctionOfSeedStreamAndIndex) {
    const Random random(7);
    EXPECT_EQ(random.bits(3), Random(7).bits(3));
    EXPECT_NE(random.bits(3), random.bits(4));
    EXPECT_NE(random.stream("a").bits(0), random.stream("b").bits(0));
    EXPECT_NE(random.stream(0).bits(0), random.bits(0));
    auto order = random.permutation(100);
    std::sort(order.begin(), order.end());
    for (int64_t i = 0; i < 100; ++i) EXPECT_EQ(order[static_cast<size_t>(i)], i);
}

TEST(Random, MomentsOfUniformNormalAndKeep) {
    const Random random(1);
    constexpr uint64_t n = 200000;
    double uniform = 0, normal = 0, square = 0, kept = 0;
    for (uint64_t i = 0; i < n; ++i) {
        uniform += random.uniform(i);
        const double x = random.normal(i);
        normal += x;
        square += x * x;
        kept += keep(random.key(), i, keep_threshold(0.1));
    }
    // Four standard errors of each mean.
    EXPECT_NEAR(uniform / n, 0.5, 4 * 0.289 / std::sqrt(n));
    EXPECT_NEAR(normal / n, 0, 4 / std::sqrt(n));
    EXPECT_NEAR(square / n, 1, 4 * std::sqrt(2.0 / n));
    EXPECT_NEAR(kept / n, 0.9, 4 * 0.3 / std::sqrt(n));
}

}  // namespace
}  // namespace ether
