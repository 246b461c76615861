// The TOML of options' files: entries at the top level of the file, each a text, a number, true or false, or
// a list of these. Tables and dates are refused. Stateless; failures are Errors of kind `format` that begin
// with file and line.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace ether::io {

struct TomlEntry {
    std::string key;
    std::vector<std::string> values;  // of a list; else the one value; numbers in their shortest form
    int64_t line = 0;                 // of the key, from 1
};

// In the file's order; keys are distinct. `name` is what errors call the file.
std::vector<TomlEntry> parse_toml(std::string_view text, const std::string& name);

}  // namespace ether::io
