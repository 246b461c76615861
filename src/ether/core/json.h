// What nlohmann's JSON values do not tell themselves. Stateless.
#pragma once

#include <nlohmann/json_fwd.hpp>

namespace ether {

// Whether it is an integer that int64_t holds: one of 2^63 and more counts as an integer there, too, and
// would become a negative one.
bool is_int64(const nlohmann::json& value);

}  // namespace ether
