// Counter-based random numbers: each value is a hash of (seed, stream, index), so nothing has a state to
// save, and any part of a run can be repeated alone. Streams are named by integers or strings.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string_view>
#include <vector>

namespace ether {

// Mixes 64 bits into 64 (the finaliser of splitmix64, Steele et al. 2014).
constexpr uint64_t mix64(uint64_t x) {
    x += 0x9e3779b97f4a7c15ULL;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
    return x ^ (x >> 31);
}

class Random {
  public:
    explicit Random(uint64_t seed) : key_(mix64(seed)) {}

    // An independent generator below this one.
    Random stream(uint64_t id) const { return Random(key_ ^ mix64(id + 1)); }
    Random stream(std::string_view name) const;

    uint64_t key() const { return key_; }
    uint64_t bits(uint64_t index) const { return mix64(key_ ^ mix64(index)); }
    double uniform(uint64_t index) const {
        return static_cast<double>(bits(index) >> 11) * 0x1.0p-53;
    }  // [0, 1)
    double normal(uint64_t index) const;
    uint64_t below(uint64_t index, uint64_t bound) const;  // [0, bound), bound > 0

    // A permutation of 0..n-1.
    std::vector<int64_t> permutation(int64_t n) const;

  private:
    uint64_t key_;
};

// Whether element `index` is kept by a dropout with probability p; threshold = keep_threshold(p).
// 32-bit mixing with three multiplications (Wellons' triple32), chosen since it vectorises.
constexpr uint32_t keep_threshold(double p) { return static_cast<uint32_t>((1.0 - p) * 4294967295.0); }
constexpr bool keep_mixed(uint32_t low, uint32_t high, uint64_t key, uint32_t threshold) {
    uint32_t x = (low ^ static_cast<uint32_t>(key)) + high * 0x9e3779b9U;
    x = (x ^ (x >> 17)) * 0xed5ad4bbU;
    x ^= static_cast<uint32_t>(key >> 32);
    x = (x ^ (x >> 11)) * 0xac4c1b51U;
    x = (x ^ (x >> 15)) * 0x31848babU;
    return (x ^ (x >> 14)) <= threshold;
}
constexpr bool keep(uint64_t key, uint64_t index, uint32_t threshold) {
    return keep_mixed(static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32), key, threshold);
}

// Calls body(i, keep(key, first + i, threshold)) for i in [0, count), in 32-bit arithmetic, so that it
// vectorises.
template <typename Body>
void for_kept(uint64_t key, uint64_t first, int64_t count, uint32_t threshold, Body&& body) {
    for (int64_t done = 0; done < count;) {
        const uint64_t index = first + static_cast<uint64_t>(done);
        const auto low = static_cast<uint32_t>(index), high = static_cast<uint32_t>(index >> 32);
        const auto piece = static_cast<int32_t>(
            std::min({count - done, (int64_t{1} << 32) - int64_t{low}, int64_t{1} << 30}));
#pragma omp simd
        for (int32_t i = 0; i < piece; ++i)
            body(done + i, keep_mixed(low + static_cast<uint32_t>(i), high, key, threshold));
        done += piece;
    }
}

}  // namespace ether
