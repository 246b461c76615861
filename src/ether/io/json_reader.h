// JSON from files: strict parsing (UTF-8, depth, duplicate keys) and typed reading of an object's keys.
// A JsonObject shares the parsed document and is immutable, so copies are cheap and threads may share it.
// Every failure is an Error of kind `format` that names the file and the key, or line and column.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace ether::io {

inline constexpr int kMaxJsonDepth = 64;

// Parses one JSON value, for errors at `name` or, where the text is one line of that file, at `name:line`.
// Refused: what is not JSON or not UTF-8, nesting deeper than kMaxJsonDepth, an object with the same key
// twice, NaN, and numbers beyond a double.
nlohmann::json parse_json(std::string_view text, const std::string& name, int64_t line = 0);

// `"abc" (string)`: a value and its type for an error message, on one line and cut short.
std::string describe(const nlohmann::json& value);

class JsonObject {
  public:
    // `value` must be an object; `name` is what errors call it. Keys of inner objects appear as
    // "rope_scaling.factor".
    JsonObject(nlohmann::json value, std::string name);
    static JsonObject parse(std::string_view text, std::string name);
    static JsonObject load(const std::filesystem::path& path);

    // T: bool, int64_t, double (an integer will do), std::string, or a std::vector of int64_t, double or
    // std::string. A key with the value null counts as absent. get: an absent key is an error; a wrong type
    // always is.
    template <typename T>
    T get(std::string_view key) const;
    template <typename T>
    T get_or(std::string_view key, T fallback) const {
        return has(key) ? get<T>(key) : fallback;
    }
    bool has(std::string_view key) const;
    JsonObject object(std::string_view key) const;

    std::vector<std::string> keys() const;  // sorted, nulls included
    const nlohmann::json& document() const { return *value_; }
    const std::string& name() const { return name_; }

  private:
    JsonObject(std::shared_ptr<const nlohmann::json> value, std::string name, std::string prefix);
    // The value at `key`; an error that says what was expected where it is absent.
    const nlohmann::json& at(std::string_view key, std::string_view expected) const;

    std::shared_ptr<const nlohmann::json> value_;
    std::string name_, prefix_;
};

}  // namespace ether::io
