// "Did you mean ...": the known name nearest to a mistyped one. Stateless.
#pragma once

#include <span>
#include <string>
#include <string_view>

namespace ether {

// The candidate with the smallest edit distance to `name`, if that is at most half of the longer one's
// length (letters' case counts for nothing); otherwise empty.
std::string near_name(std::string_view name, std::span<const std::string> candidates);

// `; did you mean "x"?`, or empty where nothing is near: to end an error message.
std::string did_you_mean(std::string_view name, std::span<const std::string> candidates);

}  // namespace ether
