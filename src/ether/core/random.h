// Counter-based random numbers: each value is a hash of (seed, stream, index), so nothing has a state to
// save, and any part of a run can be repeated alone. Streams are named by integers or strings.
#pragma once

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
inline bool keep(uint64_t key, uint64_t index, uint32_t threshold) {
    uint32_t x = static_cast<uint32_t>(index) ^ static_cast<uint32_t>(key);
    x += static_cast<uint32_t>(index >> 32) * 0x9e3779b9U;
    x = (x ^ (x >> 17)) * 0xed5ad4bbU;
    x ^= static_cast<uint32_t>(key >> 32);
    x = (x ^ (x >> 11)) * 0xac4c1b51U;
    x = (x ^ (x >> 15)) * 0x31848babU;
    return (x ^ (x >> 14)) <= threshold;
}

}  // namespace ether
