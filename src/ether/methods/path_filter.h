// Choices of modules by their paths: lists of names that end a path, or regular expressions, as PEFT reads
// them.
#pragma once

#include <functional>
#include <string>

namespace ether::methods {

inline constexpr size_t kShownPattern = 120;  // bytes of an expression in a message

// Whether a path is this name, or ends in it behind a dot.
bool ends_path(const std::string& path, const std::string& name);

// Whether an expression is a list of names, and no regular expression.
bool is_name_list(const std::string& expression);

// Whether a list of names that end a module's path, or a regular expression, chooses a path. option: for
// messages.
using PathFilter = std::function<bool(const std::string& path)>;
PathFilter path_filter(const std::string& expression, const char* option);

// Whether one of the names in a list is the whole path.
bool is_listed(const std::string& path, const std::string& expression);

// Whether a name or regular expression fits the end of a module's path, as PEFT asks of the keys of its
// patterns: the whole path, or what follows one of its dots. form: how PEFT puts the key into an expression.
// An error where it is not regular.
inline constexpr const char *kPathEnd = "(.*\\.)?({})", *kPathEndUngrouped = ".*\\.{}";
PathFilter path_end(const std::string& expression, const char* option, const char* form = kPathEnd);

}  // namespace ether::methods
