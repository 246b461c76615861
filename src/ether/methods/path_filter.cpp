#include "ether/methods/path_filter.h"

#include <algorithm>
#include <cctype>
#include <regex>

#include "ether/core/error.h"
#include "ether/core/options.h"
#include "ether/core/utf8.h"

namespace ether::methods {
namespace {

constexpr size_t kLongestPattern = 1000;

// An expression that PEFT reads as Python does, in ECMAScript's words: \A and \Z for a text's ends, groups
// with names, and {,n}.
std::string from_python(const std::string& expression) {
    std::string result;
    for (size_t i = 0; i < expression.size(); ++i) {
        const auto rest = std::string_view(expression).substr(i);
        if (rest.starts_with("\\A") || rest.starts_with("\\Z")) {
            result += rest[1] == 'A' ? '^' : '$';
            ++i;
        } else if (rest.starts_with('\\')) {
            result += rest.substr(0, 2);
            ++i;
        } else if (const auto end = rest.find('>'); rest.starts_with("(?P<") && end != std::string::npos) {
            result += "(?:";
            i += end;
        } else if (rest.starts_with("{,")) {
            result += "{0";
        } else {
            result += rest.front();
        }
    }
    return result;
}

// Expressions come from downloaded files as well: libstdc++ compiles them by recursion and, but for its
// polynomial mode (which has no back-references), searches for a match in exponential time.
std::regex compiled(const std::string& expression, const char* option, const char* form = "{}") {
    if (expression.size() > kLongestPattern)
        fail(ErrorKind::usage, "{}: the regular expression has {} characters, more than {}; name the layers",
             option, expression.size(), kLongestPattern);
    try {
        // Classes like [[:digit:]], which Python takes for something else.
        if (expression.find("[[:") != std::string::npos)
            throw std::regex_error(std::regex_constants::error_ctype);
        return std::regex(fmt::format(fmt::runtime(form), from_python(expression)),
                          std::regex::ECMAScript | std::regex::nosubs | std::regex_constants::__polynomial);
    } catch (const std::regex_error& error) {
        fail(ErrorKind::usage,
             "{}: \"{}\" is not a regular expression, or has what is not read here (flags, look-behind, "
             "back-references): {}",
             option, printable(expression, kShownPattern), error.what());
    }
}

}  // namespace

bool ends_path(const std::string& path, const std::string& name) {
    return path == name || (path.ends_with(name) && path[path.size() - name.size() - 1] == '.');
}

// It holds nothing but names and commas.
bool is_name_list(const std::string& expression) {
    return std::all_of(expression.begin(), expression.end(),
                       [](unsigned char c) {
                           return std::isalnum(c) || c == '_' || c == '.' || c == '-' || c == ',' || c == ' ';
                       }) &&
           expression.find(".*") == std::string::npos;
}

// Whether one of the names in a list is the whole path.
bool is_listed(const std::string& path, const std::string& expression) {
    if (!is_name_list(expression)) return false;
    const auto names = split_list(expression);
    return std::find(names.begin(), names.end(), path) != names.end();
}

PathFilter path_filter(const std::string& expression, const char* option) {
    if (is_name_list(expression))
        return [names = split_list(expression)](const std::string& path) {
            return std::any_of(names.begin(), names.end(),
                               [&](const auto& name) { return ends_path(path, name); });
        };
    return [pattern = compiled(expression, option)](const std::string& path) {
        return std::regex_match(path, pattern);
    };
}

PathFilter path_end(const std::string& expression, const char* option, const char* form) {
    const bool is_name = expression.find_first_of(",.") == std::string::npos && is_name_list(expression);
    if (is_name) return [expression](const std::string& path) { return ends_path(path, expression); };
    const auto pattern = compiled(expression, option, form);
    return [pattern](const std::string& path) { return std::regex_match(path, pattern); };
}

}  // namespace ether::methods
