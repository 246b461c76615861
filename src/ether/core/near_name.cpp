#include "ether/core/near_name.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <cstddef>
#include <numeric>
#include <vector>

#include "ether/core/utf8.h"

namespace ether {
namespace {

constexpr size_t kLongestName = 256;  // the distance costs the product of both lengths

// Levenshtein distance without regard to ASCII case.
size_t edit_distance(std::string_view a, std::string_view b) {
    const auto lower = [](char c) { return std::tolower(static_cast<unsigned char>(c)); };
    std::vector<size_t> row(b.size() + 1);
    std::iota(row.begin(), row.end(), size_t{0});
    for (size_t i = 0; i < a.size(); ++i) {
        size_t diagonal = row[0];
        row[0] = i + 1;
        for (size_t j = 0; j < b.size(); ++j) {
            const size_t replaced = diagonal + (lower(a[i]) != lower(b[j]));
            diagonal = row[j + 1];
            row[j + 1] = std::min({row[j] + 1, diagonal + 1, replaced});
        }
    }
    return row.back();
}

}  // namespace

std::string near_name(std::string_view name, std::span<const std::string> candidates) {
    std::string best;
    size_t best_distance = kLongestName;
    if (name.size() > kLongestName) return best;
    for (const std::string& candidate : candidates) {
        if (candidate.size() > kLongestName) continue;
        const size_t distance = edit_distance(name, candidate);
        if (distance < best_distance && 2 * distance <= std::max(name.size(), candidate.size())) {
            best = candidate;
            best_distance = distance;
        }
    }
    return best;
}

std::string did_you_mean(std::string_view name, std::span<const std::string> candidates) {
    const std::string near = near_name(name, candidates);
    return near.empty() ? "" : fmt::format("; did you mean \"{}\"?", printable(near));
}

}  // namespace ether
