// Folders that the environment names.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <optional>

namespace ether::io {

// The path in an environment variable, in which "~/" is the home folder; nothing where it is unset or empty.
inline std::optional<std::filesystem::path> path_variable(const char* name) {
    const char* value = std::getenv(name);
    if (value == nullptr || *value == '\0') return std::nullopt;
    const char* home = std::getenv("HOME");
    if (value[0] == '~' && value[1] == '/' && home != nullptr)
        return std::filesystem::path(home) / (value + 2);
    return std::filesystem::path(value);
}

}  // namespace ether::io
