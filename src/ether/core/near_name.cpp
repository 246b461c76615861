#include "ether/core/near_name.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <cstddef>
#include <numeric>
#include <utility>
#include <vector>

#include "ether/core/utf8.h"

namespace ether {
namespace {

constexpr size_t kLongestName = 256;  // the distance costs the product of both lengths

// Levenshtein's distance, in which two neighbours that changed places count once, without regard to ASCII
// case.
size_t edit_distance(std::string_view a, std::string_view b) {
    const auto same = [](char c, char d) {
        return std::tolower(static_cast<unsigned char>(c)) == std::tolower(static_cast<unsigned char>(d));
    };
    std::vector<size_t> before_last, last(b.size() + 1), row(b.size() + 1);
    std::iota(last.begin(), last.end(), size_t{0});
    for (size_t i = 1; i <= a.size(); ++i) {
        row[0] = i;
        for (size_t j = 1; j <= b.size(); ++j) {
            const size_t replaced = last[j - 1] + !same(a[i - 1], b[j - 1]);
            row[j] = std::min({row[j - 1] + 1, last[j] + 1, replaced});
            if (i > 1 && j > 1 && same(a[i - 1], b[j - 2]) && same(a[i - 2], b[j - 1]))
                row[j] = std::min(row[j], before_last[j - 2] + 1);
        }
        before_last = std::exchange(last, row);
    }
    return last.back();
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
