#include "ether/data/labels.h"

#include "io/test_files.h"

namespace ether::data {
namespace {

std::vector<Example> labelled(std::vector<Label> labels) {
    std::vector<Example> examples;
    for (Label& label : labels)
        examples.push_back({.text = "",
                            .pair = {},
                            .label = std::move(label),
                            .line = static_cast<int64_t>(examples.size()) + 1});
    return examples;
}
Example one(Label label) { return {.text = "", .pair = {}, .label = std::move(label), .line = 17}; }

TEST(LabelSet, SortsNamesAndNumbers) {
    const LabelSet words = LabelSet::from_examples(labelled({"no", "yes", "Maybe", "no"}), "f");
    EXPECT_EQ(words.names(), (std::vector<std::string>{"Maybe", "no", "yes"}));
    EXPECT_EQ(words.index(one("yes"), "f"), 2);
    const LabelSet numbers =
        LabelSet::from_examples(labelled({int64_t{10}, int64_t{-1}, int64_t{9}, int64_t{9}}), "f");
    EXPECT_EQ(numbers.names(), (std::vector<std::string>{"-1", "9", "10"}));
    EXPECT_EQ(numbers.index(one(int64_t{10}), "f"), 2);
    EXPECT_EQ(numbers.index(one(int64_t{-1}), "f"), 0);
}

TEST(LabelSet, NamesKeepTheirOrder) {
    const LabelSet labels = LabelSet::from_names({"positive", "negative", "neutral"}, "f");
    for (int64_t i = 0; i < labels.size(); ++i)
        EXPECT_EQ(labels.index(one(labels.names()[static_cast<size_t>(i)]), "f"), i);
    EXPECT_EQ(LabelSet::from_names({"0", "1"}, "f").index(one(int64_t{1}), "f"), 1);
    // Classes without names of their own are known by their numbers, too.
    const LabelSet nameless = LabelSet::from_names({"LABEL_0", "LABEL_1"}, "f");
    EXPECT_EQ(nameless.index(one(int64_t{1}), "f"), 1);
    EXPECT_EQ(nameless.index(one("LABEL_1"), "f"), 1);
    EXPECT_FAILS(data, "unknown label \"2\"", nameless.index(one(int64_t{2}), "f"));
    EXPECT_FAILS(data, "f: two classes are called \"a\"", LabelSet::from_names({"a", "b", "a"}, "f"));
}

TEST(LabelSet, RefusesWhatDoesNotFit) {
    const LabelSet labels = LabelSet::from_names({"positive", "negative"}, "f");
    EXPECT_FAILS(
        data,
        R"(valid.jsonl:17: unknown label "postive"; the 2 labels are positive, negative; did you mean "positive"?)",
        labels.index(one("postive"), "valid.jsonl"));
    EXPECT_FAILS(data, "valid.jsonl:17: unknown label \"3\"", labels.index(one(int64_t{3}), "valid.jsonl"));
    EXPECT_FAILS(data, "valid.jsonl:17: expected a label, found none", labels.index(one({}), "valid.jsonl"));
    EXPECT_FAILS(data, "expected a class (a string or an integer), found the number 0.5",
                 labels.index(one(0.5), "f"));
    EXPECT_FAILS(data, "f: expected two or more different labels, found only \"a\"",
                 LabelSet::from_examples(labelled({"a", "a"}), "f"));
    EXPECT_FAILS(data, "found none", LabelSet::from_examples({}, "f"));
    EXPECT_FAILS(data, "f:2: expected a label", LabelSet::from_examples(labelled({"a", {}}), "f"));
    EXPECT_FAILS(data,
                 "f:1: expected a class (a string or an integer), found the number 2.0; real numbers are",
                 LabelSet::from_examples(labelled({2.0, 3.0}), "f"));
    EXPECT_FAILS(data, "f:1: expected a class", LabelSet::from_examples(labelled({1.5, 2.0}), "f"));
    std::vector<std::string> many;
    for (int i = 0; i < 1000; ++i) many.push_back("name" + std::to_string(i));
    EXPECT_FAILS(
        data, "the 1000 labels are name0, name1, name2, name3, name4, name5, name6, name7, name8, name9, ...",
        LabelSet::from_names(many, "f").index(one("other"), "f"));
}

}  // namespace
}  // namespace ether::data
