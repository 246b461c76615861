#include "ether/core/random.h"

#include <cmath>
#include <numbers>
#include <numeric>
#include <utility>

namespace ether {

Random Random::stream(std::string_view name) const {
    uint64_t hash = 0xcbf29ce484222325ULL;  // FNV-1a
    for (unsigned char c : name) hash = (hash ^ c) * 0x100000001b3ULL;
    return stream(hash);
}

double Random::normal(uint64_t index) const {  // Box-Muller
    const double radius = std::sqrt(-2.0 * std::log(1.0 - uniform(2 * index)));
    return radius * std::cos(2.0 * std::numbers::pi * uniform(2 * index + 1));
}

uint64_t Random::below(uint64_t index, uint64_t bound) const {
    return static_cast<uint64_t>((static_cast<unsigned __int128>(bits(index)) * bound) >> 64);
}

std::vector<int64_t> Random::permutation(int64_t n) const {  // Fisher-Yates
    std::vector<int64_t> order(static_cast<size_t>(n));
    std::iota(order.begin(), order.end(), int64_t{0});
    for (int64_t i = n - 1; i > 0; --i)
        std::swap(order[static_cast<size_t>(i)],
                  order[below(static_cast<uint64_t>(i), static_cast<uint64_t>(i) + 1)]);
    return order;
}

}  // namespace ether
