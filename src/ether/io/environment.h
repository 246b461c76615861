// Folders that the environment names.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <optional>

namespace ether::io {

// The path in an environment variable; nothing where it is unset or empty.
inline std::optional<std::filesystem::path> path_variable(const char* name) {
    const char* value = std::getenv(name);
    if (value == nullptr || *value == '\0') return std::nullopt;
    return std::filesystem::path(value);
}

}  // namespace ether::io
