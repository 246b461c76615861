#include "ether/core/json.h"

#include <cstdint>
#include <nlohmann/json.hpp>

namespace ether {

bool is_int64(const nlohmann::json& value) {
    return value.is_number_integer() &&
           !(value.is_number_unsigned() && value.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX));
}

}  // namespace ether
