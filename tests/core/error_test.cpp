#include "ether/core/error.h"

#include <gtest/gtest.h>

#include <string>

namespace ether {
namespace {

TEST(Error, IsOneLineWhateverItQuotes) {
    EXPECT_STREQ(Error(ErrorKind::format, "key \"a\nb\"").what(), "key \"a\\x0ab\"");
    EXPECT_LT(std::string(Error(ErrorKind::format, std::string(1'000'000, 'x')).what()).size(), 10'000U);
}

}  // namespace
}  // namespace ether
