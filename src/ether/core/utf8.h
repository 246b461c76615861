// UTF-8 checks, and the printing of a user's bytes in one-line messages. Stateless.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace ether {

inline constexpr std::string_view kByteOrderMark = "\xef\xbb\xbf";  // what a text may begin with

// Offset of the first byte that does not belong to well-formed UTF-8 (no overlong forms, no surrogates, at
// most U+10FFFF), or npos.
size_t find_invalid_utf8(std::string_view text);

// `text` safe to show in one line: control characters and malformed bytes as \xNN, cut after `limit` bytes.
std::string printable(std::string_view text, size_t limit = 60);
inline constexpr size_t kShownValue = 200;  // the limit for a value in a user's file

}  // namespace ether
