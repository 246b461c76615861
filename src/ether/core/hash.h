// A hash of 128 bits (XXH3) that tells apart what changed by accident: no defence against someone who wants a
// match.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

namespace ether {

// Over byte strings, at the speed of memory.
class Hash {
  public:
    Hash();
    ~Hash();
    Hash(const Hash&) = delete;
    Hash& operator=(const Hash&) = delete;

    // Prefixed by its length: two strings are not one that is as long as both.
    void add(const void* data, size_t size);
    void add(std::string_view text) { add(text.data(), text.size()); }
    // A part of one long string, wherever that is cut.
    void extend(std::string_view part);
    std::string hex() const;  // 32 digits

  private:
    struct State;
    std::unique_ptr<State> state_;
};

// Of one text, 32 digits.
std::string hash_of(std::string_view text);

}  // namespace ether
