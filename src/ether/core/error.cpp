#include "ether/core/error.h"

#include <cstdio>
#include <cstdlib>

#include "ether/core/utf8.h"

namespace ether {
namespace {

constexpr size_t kLongestMessage = 8000;  // two of the longest paths fit

}  // namespace

Error::Error(ErrorKind kind, const std::string& message)
    : std::runtime_error(printable(message, kLongestMessage)), kind_(kind) {}

void assertion_failed(const char* condition, const char* file, int line) {
    std::fprintf(stderr, "ether: internal error at %s:%d: %s does not hold; please report it\n", file, line,
                 condition);
    std::abort();
}

}  // namespace ether
