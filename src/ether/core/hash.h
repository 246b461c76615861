// A hash of 128 bits that tells apart what changed by accident: no defence against someone who wants a match.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

#include "ether/core/random.h"

namespace ether {

// Two independently keyed 64-bit lanes over length-prefixed byte strings.
class Hash {
  public:
    void add(const void* data, size_t size) {
        add_word(size);
        const char* bytes = static_cast<const char*>(data);
        for (; size > 0; bytes += std::min<size_t>(size, 8), size -= std::min<size_t>(size, 8)) {
            uint64_t word = 0;
            std::memcpy(&word, bytes, std::min<size_t>(size, 8));
            add_word(word);
        }
    }
    void add(std::string_view text) { add(text.data(), text.size()); }
    std::string hex() const { return fmt::format("{:016x}{:016x}", first_, second_); }

  private:
    void add_word(uint64_t word) {
        first_ = mix64(first_ ^ word);
        second_ = mix64(second_ + mix64(word));
    }
    uint64_t first_ = 1, second_ = 2;
};

}  // namespace ether
