#include "ether/core/hash.h"

#include <fmt/format.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace ether {

struct Hash::State {
    XXH3_state_t own;
};

Hash::Hash() : state_(std::make_unique<State>()) { XXH3_128bits_reset(&state_->own); }
Hash::~Hash() = default;

void Hash::add(const void* data, size_t size) {
    XXH3_128bits_update(&state_->own, &size, sizeof(size));
    XXH3_128bits_update(&state_->own, data, size);
}

void Hash::extend(std::string_view part) { XXH3_128bits_update(&state_->own, part.data(), part.size()); }

std::string Hash::hex() const {
    const auto digest = XXH3_128bits_digest(&state_->own);
    return fmt::format("{:016x}{:016x}", digest.high64, digest.low64);
}

std::string hash_of(std::string_view text) {
    Hash hash;
    hash.add(text);
    return hash.hex();
}

}  // namespace ether
