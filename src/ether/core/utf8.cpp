#include "ether/core/utf8.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace ether {
namespace {

// Length of the well-formed sequence at the start of `text` (not empty), or 0.
size_t sequence_length(std::string_view text) {
    const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
    const uint8_t lead = byte(0);
    if (lead < 0x80) return 1;
    const size_t length = lead >= 0xc2 && lead <= 0xdf   ? 2
                          : (lead & 0xf0) == 0xe0        ? 3
                          : lead >= 0xf0 && lead <= 0xf4 ? 4
                                                         : 0;
    if (length == 0 || text.size() < length) return 0;
    for (size_t i = 1; i < length; ++i)
        if ((byte(i) & 0xc0) != 0x80) return 0;
    const uint8_t second = byte(1);
    const bool overlong = (lead == 0xe0 && second < 0xa0) || (lead == 0xf0 && second < 0x90);
    const bool surrogate = lead == 0xed && second >= 0xa0;
    const bool too_large = lead == 0xf4 && second >= 0x90;
    return overlong || surrogate || too_large ? 0 : length;
}

}  // namespace

size_t find_invalid_utf8(std::string_view text) {
    size_t i = 0;
    while (i < text.size()) {
        uint64_t word = 0;
        if (text.size() - i >= sizeof word) {  // eight ASCII bytes at a time
            std::memcpy(&word, text.data() + i, sizeof word);
            if ((word & 0x8080808080808080ULL) == 0) {
                i += sizeof word;
                continue;
            }
        }
        const size_t length = sequence_length(text.substr(i));
        if (length == 0) return i;
        i += length;
    }
    return std::string_view::npos;
}

std::string printable(std::string_view text, size_t limit) {
    std::string shown;
    size_t i = 0;
    while (i < text.size() && i < limit) {
        const size_t length = sequence_length(text.substr(i));
        const auto byte = static_cast<uint8_t>(text[i]);
        const bool control = byte < 0x20 || byte == 0x7f ||  // and U+0080 to U+009F
                             (length == 2 && byte == 0xc2 && static_cast<uint8_t>(text[i + 1]) < 0xa0);
        if (length == 0 || control)
            for (size_t k = 0; k < std::max<size_t>(length, 1); ++k)
                shown += fmt::format("\\x{:02x}", static_cast<uint8_t>(text[i + k]));
        else
            shown += text.substr(i, length);
        i += std::max<size_t>(length, 1);
    }
    if (i < text.size()) shown += "...";
    return shown;
}

}  // namespace ether
