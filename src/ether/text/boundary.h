// Strings across the C interface of rust/text; for this room's sources only. Stateless.
#pragma once

#include <ether_text.h>

#include <string>
#include <string_view>

namespace ether::text {

// Valid as long as `text` is.
inline EtherText borrow(std::string_view text) { return {text.data(), text.size()}; }

// Copies and frees.
inline std::string take(EtherString string) {
    std::string out(string.data, string.size);
    ether_string_free(string);
    return out;
}

}  // namespace ether::text
