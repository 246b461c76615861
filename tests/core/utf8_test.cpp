#include "ether/core/utf8.h"

#include <gtest/gtest.h>

#include "ether/core/near_name.h"

namespace ether {
namespace {

using namespace std::string_view_literals;

TEST(Utf8, TakesWellFormedText) {
    for (const std::string_view text :
         {""sv, "a"sv, "twelve bytes"sv, "\0"sv, "\x7f"sv, "\xc2\x80"sv, "\xdf\xbf"sv, "\xe0\xa0\x80"sv,
          "\xed\x9f\xbf"sv, "\xee\x80\x80"sv, "\xef\xbf\xbf"sv, "\xf0\x90\x80\x80"sv, "\xf4\x8f\xbf\xbf"sv,
          "long text ends with \xc3\xa9"sv})
        EXPECT_EQ(find_invalid_utf8(text), std::string_view::npos) << printable(text);
}

TEST(Utf8, FindsTheFirstBadByte) {
    for (const std::string_view bad :
         {"\x80"sv, "\xc0\x80"sv, "\xc1\xbf"sv, "\xc3"sv, "\xc3("sv, "\xe0\x9f\xbf"sv, "\xe2\x82"sv,
          "\xed\xa0\x80"sv, "\xf0\x8f\xbf\xbf"sv, "\xf0\x9f\x98"sv, "\xf4\x90\x80\x80"sv,
          "\xf5\x80\x80\x80"sv, "\xfe"sv, "\xff"sv})
        for (const std::string_view before : {""sv, "seven.."sv, "nine byte"sv, "\xc3\xa9"sv}) {
            EXPECT_EQ(find_invalid_utf8(std::string(before) + std::string(bad)), before.size())
                << printable(bad);
            EXPECT_EQ(find_invalid_utf8(std::string(before) + std::string(bad) + "some ASCII after"),
                      before.size());
        }
}

TEST(Utf8, PrintsOneCleanLine) {
    EXPECT_EQ(printable("a\nb\xff\x80 \xc3\xa9\x1b[0m"), "a\\x0ab\\xff\\x80 \xc3\xa9\\x1b[0m");
    EXPECT_EQ(printable("abcdef", 3), "abc...");
    EXPECT_EQ(printable("ab\xc3\xa9", 3), "ab\xc3\xa9") << "a character is not cut in two";
}

TEST(NearName, FindsTheTypo) {
    const std::vector<std::string> names{"text", "label", "premise"};
    EXPECT_EQ(near_name("lable", names), "label");
    EXPECT_EQ(near_name("Text", names), "text");
    EXPECT_EQ(near_name("premises", names), "premise");
    EXPECT_EQ(near_name("otu", std::vector<std::string>{"in", "out"}), "out");
    EXPECT_EQ(near_name("hypothesis", names), "");
    EXPECT_EQ(near_name("", names), "");
    EXPECT_EQ(near_name(std::string(100'000, 'x'), names), "");
    EXPECT_EQ(did_you_mean("txt", names), "; did you mean \"text\"?");
}

}  // namespace
}  // namespace ether
