#include "ether/io/json_reader.h"

#include <algorithm>
#include <iterator>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "ether/core/error.h"
#include "ether/core/json.h"
#include "ether/core/near_name.h"
#include "ether/core/utf8.h"
#include "ether/io/file.h"

namespace ether::io {
using nlohmann::json;
namespace {

constexpr size_t kShownBytes = 160;  // of the parser's own message, which quotes the text

// `name:line:column` of an offset in `text`; `line` as for parse_json.
std::string place(const std::string& name, int64_t line, std::string_view text, size_t offset) {
    const std::string_view before = text.substr(0, offset);
    if (line == 0) line = 1 + std::count(before.begin(), before.end(), '\n');
    const size_t line_start = before.rfind('\n') + 1;  // npos + 1 == 0
    return fmt::format("{}:{}:{}", name, line, offset - line_start + 1);
}

// nlohmann's messages read "[json.exception.kind.number] parse error at line 1, column 2: what".
std::string parser_message(const json::exception& error) {
    std::string_view message = error.what();
    if (const size_t bracket = message.find("] "); bracket != std::string_view::npos)
        message.remove_prefix(bracket + 2);
    if (message.starts_with("parse error"))
        if (const size_t colon = message.find(": "); colon != std::string_view::npos)
            message.remove_prefix(colon + 2);
    return printable(message, kShownBytes);
}

// A text's bytes as the parser asks for them: how far it has read says where it was when something was wrong.
class Watched {
  public:
    using difference_type = std::ptrdiff_t;
    using value_type = char;
    using pointer = const char*;
    using reference = const char&;
    using iterator_category = std::forward_iterator_tag;

    Watched(const char* at, const char*& read) : at_(at), read_(&read) {}
    reference operator*() const { return *at_; }
    Watched& operator++() {
        *read_ = ++at_;
        return *this;
    }
    Watched operator++(int) {
        auto before = *this;
        ++*this;
        return before;
    }
    bool operator==(const Watched& other) const { return at_ == other.at_; }

  private:
    const char* at_;
    const char** read_;
};

// What each supported type is called, and how it is read (false: the value is of another type).
template <typename T>
struct Reader;
template <>
struct Reader<bool> {
    static constexpr const char* kName = "true or false";
    static bool read(const json& value, bool& out) {
        return value.is_boolean() && (out = value.get<bool>(), true);
    }
};
template <>
struct Reader<int64_t> {
    static constexpr const char* kName = "an integer";
    static bool read(const json& value, int64_t& out) {
        return is_int64(value) && (out = value.get<int64_t>(), true);
    }
};
template <>
struct Reader<double> {
    static constexpr const char* kName = "a number";
    static bool read(const json& value, double& out) {
        return value.is_number() && (out = value.get<double>(), true);
    }
};
template <>
struct Reader<std::string> {
    static constexpr const char* kName = "a string";
    static bool read(const json& value, std::string& out) {
        return value.is_string() && (out = value.get<std::string>(), true);
    }
};
template <typename T>
struct ListReader {
    static bool read(const json& value, std::vector<T>& out) {
        if (!value.is_array()) return false;
        out.resize(value.size());
        for (size_t i = 0; i < out.size(); ++i)
            if (!Reader<T>::read(value[i], out[i])) return false;
        return true;
    }
};
template <>
struct Reader<std::vector<int64_t>> : ListReader<int64_t> {
    static constexpr const char* kName = "a list of integers";
};
template <>
struct Reader<std::vector<double>> : ListReader<double> {
    static constexpr const char* kName = "a list of numbers";
};
template <>
struct Reader<std::vector<std::string>> : ListReader<std::string> {
    static constexpr const char* kName = "a list of strings";
};

[[noreturn]] void fail_type(const std::string& where, std::string_view key, std::string_view expected,
                            const json& found) {
    fail(ErrorKind::format, "{}: key \"{}\": expected {}, found {}", where, key, expected, describe(found));
}

}  // namespace

json parse_json(std::string_view text, const std::string& name, int64_t line) {
    if (const size_t bad = find_invalid_utf8(text); bad != std::string_view::npos)
        fail(ErrorKind::format, "{}: not UTF-8: byte 0x{:02x}", place(name, line, text, bad),
             static_cast<unsigned char>(text[bad]));
    // The parser takes a NUL for the text's end, whatever follows.
    if (const size_t nul = text.find('\0'); nul != std::string_view::npos)
        fail(ErrorKind::format, "{}: not valid JSON: a NUL byte", place(name, line, text, nul));
    const char* read = text.data();
    const auto here = [&] { return place(name, line, text, static_cast<size_t>(read - text.data()) - 1); };
    // The parser's own state is flat, so depth is bounded for the sake of whoever walks the document later.
    std::vector<std::set<std::string>> open_objects;
    const auto check = [&](int depth, json::parse_event_t event, json& parsed) {
        switch (event) {
            case json::parse_event_t::object_start:
                open_objects.emplace_back();
                [[fallthrough]];
            case json::parse_event_t::array_start:
                if (depth >= kMaxJsonDepth)
                    fail(ErrorKind::format, "{}: JSON is nested deeper than {} levels", here(),
                         kMaxJsonDepth);
                break;
            case json::parse_event_t::key:
                if (!open_objects.back().insert(parsed.get_ref<const std::string&>()).second)
                    fail(ErrorKind::format, "{}: key \"{}\" stands twice in one JSON object", here(),
                         printable(parsed.get_ref<const std::string&>()));
                break;
            case json::parse_event_t::object_end:
                open_objects.pop_back();
                break;
            case json::parse_event_t::array_end:
            case json::parse_event_t::value:
                break;
        }
        return true;
    };
    try {
        return json::parse(Watched(text.data(), read), Watched(text.data() + text.size(), read), check);
    } catch (const json::parse_error& error) {
        const size_t offset = std::min(text.size(), error.byte > 0 ? error.byte - 1 : 0);
        fail(ErrorKind::format, "{}: not valid JSON: {}", place(name, line, text, offset),
             parser_message(error));
    } catch (const json::exception& error) {  // a number that no double holds: its end has been read
        constexpr std::string_view kNumber = "+-.0123456789eE";
        while (read > text.data() && kNumber.find(read[-1]) == std::string_view::npos) --read;
        fail(ErrorKind::format, "{}: not valid JSON: {}", here(), parser_message(error));
    }
}

std::string describe(const json& value) {
    const char* type = value.is_number_integer() ? "integer" : value.type_name();
    if (value.is_null()) return "null";
    if (value.is_array()) return fmt::format("a list of {}", value.size());
    if (value.is_object()) return fmt::format("an object of {} keys", value.size());
    if (value.is_string())
        return fmt::format("\"{}\" ({})", printable(value.get_ref<const std::string&>()), type);
    return fmt::format("{} ({})", value.dump(), type);
}

JsonObject::JsonObject(std::shared_ptr<const json> value, std::string name, std::string prefix)
    : value_(std::move(value)), name_(std::move(name)), prefix_(std::move(prefix)) {
    if (!value_->is_object())
        fail(ErrorKind::format, "{}: expected a JSON object, found {}", name_, describe(*value_));
}

JsonObject::JsonObject(json value, std::string name)
    : JsonObject(std::make_shared<const json>(std::move(value)), std::move(name), "") {}

JsonObject JsonObject::parse(std::string_view text, std::string name) {
    json value = parse_json(text, name);
    return JsonObject(std::move(value), std::move(name));
}

JsonObject JsonObject::load(const std::filesystem::path& path) {
    return parse(read_text_file(path), path.string());
}

bool JsonObject::has(std::string_view key) const {
    const auto found = value_->find(key);
    return found != value_->end() && !found->is_null();
}

const json& JsonObject::at(std::string_view key, std::string_view expected) const {
    const auto found = value_->find(key);
    if (found == value_->end())
        fail(ErrorKind::format, "{}: key \"{}{}\" is missing, expected {}{}", name_, prefix_, key, expected,
             did_you_mean(key, keys()));
    if (found->is_null()) fail_type(name_, prefix_ + std::string(key), expected, *found);
    return *found;
}

JsonObject JsonObject::object(std::string_view key) const {
    const json& value = at(key, "an object");
    if (!value.is_object()) fail_type(name_, prefix_ + std::string(key), "an object", value);
    return JsonObject(std::shared_ptr<const json>(value_, &value), name_, fmt::format("{}{}.", prefix_, key));
}

std::vector<std::string> JsonObject::keys() const {
    std::vector<std::string> names;
    for (const auto& item : value_->items()) names.push_back(item.key());
    return names;
}

template <typename T>
T JsonObject::get(std::string_view key) const {
    const json& value = at(key, Reader<T>::kName);
    T result{};
    if (!Reader<T>::read(value, result))
        fail_type(name_, prefix_ + std::string(key), Reader<T>::kName, value);
    return result;
}

template bool JsonObject::get(std::string_view) const;
template int64_t JsonObject::get(std::string_view) const;
template double JsonObject::get(std::string_view) const;
template std::string JsonObject::get(std::string_view) const;
template std::vector<int64_t> JsonObject::get(std::string_view) const;
template std::vector<double> JsonObject::get(std::string_view) const;
template std::vector<std::string> JsonObject::get(std::string_view) const;

}  // namespace ether::io
