// Options as plain structs: each lists its fields once, and the command line, TOML files, --help, adapter
// configs and validation all come from that list. A Field points into the struct that made it and must not
// outlive it.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace ether {

// "a, b" -> {"a", "b"}; empty parts are left out.
std::vector<std::string> split_list(const std::string& text);

// "q_proj=16,v_proj=4": numbers of what these names or expressions fit.
using NumbersByName = std::vector<std::pair<std::string, double>>;

struct Field {
    // An optional number that is absent stands for what its help says, and has no text.
    using Value = std::variant<bool*, int64_t*, double*, std::optional<double>*, std::string*,
                               std::vector<std::string>*, std::vector<int64_t>*, NumbersByName*>;

    std::string name;  // as on the command line, without dashes: "max-length"
    Value value;
    std::string help;                           // meaning and unit, one line
    std::optional<double> low = {}, high = {};  // inclusive bounds of numbers
    std::vector<std::string> choices = {};      // of a string; empty: any
    std::string key = {};                       // in adapter_config.json; empty: the name with '_' for '-'
    bool joined = false;                        // of a string: several values are one, comma-separated

    std::string config_key() const;
    // The value as text, as it would be typed; lists are comma-separated.
    std::string text() const;
    // Parses and checks; an error names field, value and what was expected.
    void set(const std::string& text) const;
    // Range and choices; NaN is never in range.
    void check() const;

    nlohmann::json to_json() const;
    // `where` names the file in errors.
    void from_json(const nlohmann::json& json, const std::string& where) const;
};

using Fields = std::vector<Field>;

// The field of that name, or null.
const Field* find_field(const Fields& fields, const std::string& name);

}  // namespace ether
