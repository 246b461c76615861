#include "ether/core/options.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>

#include "ether/core/error.h"
#include "ether/core/json.h"
#include "ether/core/near_name.h"
#include "ether/core/utf8.h"

namespace ether {
namespace {

template <typename... Cases>
struct Overloaded : Cases... {
    using Cases::operator()...;
};
template <typename... Cases>
Overloaded(Cases...) -> Overloaded<Cases...>;

// One without a fraction is an integer there.
nlohmann::json number_json(double number) {
    constexpr double kExact = 1LL << 53;
    const bool whole = number == std::floor(number) && std::abs(number) < kExact;
    return whole ? nlohmann::json(static_cast<int64_t>(number)) : nlohmann::json(number);
}

template <typename Number>
Number parse_number(const Field& field, const std::string& text, const char* kind) {
    Number value{};
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc() || end != text.data() + text.size())
        fail(ErrorKind::usage, "--{}: expected {}, got \"{}\"", field.name, kind, printable(text));
    return value;
}

// "1 to 8": a number's bounds, for a message.
std::string range_text(const Field& field) {
    if (field.low && field.high) return fmt::format("{} to {}", *field.low, *field.high);
    return field.low ? fmt::format("at least {}", *field.low) : "";
}

}  // namespace

std::vector<std::string> split_list(const std::string& text) {
    std::vector<std::string> parts;
    for (size_t begin = 0; begin <= text.size();) {
        const size_t end = std::min(text.find(',', begin), text.size());
        while (begin < end && text[begin] == ' ') ++begin;
        size_t last = end;
        while (last > begin && text[last - 1] == ' ') --last;
        if (last > begin) parts.push_back(text.substr(begin, last - begin));
        begin = end + 1;
    }
    return parts;
}

std::string Field::config_key() const {
    if (!key.empty()) return key;
    std::string result = name;
    std::replace(result.begin(), result.end(), '-', '_');
    return result;
}

std::string Field::text() const {
    return std::visit(
        Overloaded{
            [](const bool* v) { return std::string(*v ? "true" : "false"); },
            [](const int64_t* v) { return std::to_string(*v); },
            [](const double* v) { return fmt::format("{}", *v); },
            [](const std::optional<double>* v) { return *v ? fmt::format("{}", **v) : ""; },
            [](const std::string* v) { return *v; },
            [](const std::vector<std::string>* v) { return fmt::format("{}", fmt::join(*v, ",")); },
            [](const std::vector<int64_t>* v) { return fmt::format("{}", fmt::join(*v, ",")); },
            [](const NumbersByName* v) {
                std::vector<std::string> entries;
                for (const auto& [name, number] : *v) entries.push_back(fmt::format("{}={}", name, number));
                return fmt::format("{}", fmt::join(entries, ","));
            },
        },
        value);
}

void Field::set(const std::string& text) const {
    std::visit(Overloaded{
                   [&](bool* v) {
                       if (text != "true" && text != "false")
                           fail(ErrorKind::usage, "--{}: expected true or false, got \"{}\"", name,
                                printable(text));
                       *v = text == "true";
                   },
                   [&](int64_t* v) { *v = parse_number<int64_t>(*this, text, "an integer"); },
                   [&](double* v) { *v = parse_number<double>(*this, text, "a number"); },
                   [&](std::optional<double>* v) { *v = parse_number<double>(*this, text, "a number"); },
                   [&](std::string* v) { *v = text; },
                   [&](std::vector<std::string>* v) { *v = split_list(text); },
                   [&](std::vector<int64_t>* v) {
                       v->clear();
                       for (const auto& entry : split_list(text))
                           v->push_back(parse_number<int64_t>(*this, entry, "integers"));
                   },
                   [&](NumbersByName* v) {
                       v->clear();
                       std::string entry;  // names may be expressions with commas: a number ends an entry
                       for (const auto& piece : split_list(text)) {
                           entry += (entry.empty() ? "" : ",") + piece;
                           const auto sign = piece.rfind('=');
                           if (sign == std::string::npos || entry.front() == '=') continue;
                           v->emplace_back(entry.substr(0, entry.rfind('=')),
                                           parse_number<double>(*this, piece.substr(sign + 1), "a number"));
                           entry.clear();
                       }
                       if (!entry.empty())
                           fail(ErrorKind::usage, "--{}: \"{}\" is not of the form NAME=NUMBER", name,
                                printable(entry));
                   },
               },
               value);
    check();
}

void Field::check() const {
    auto in_range = [&](double number) {
        if (std::isfinite(number) && (!low || number >= *low) && (!high || number <= *high)) return;
        const auto range = range_text(*this);
        fail(ErrorKind::usage, "--{}: {} is out of range, expected {}", name, number,
             range.empty() ? "a finite number" : range);
    };
    if (const auto* integer = std::get_if<int64_t*>(&value)) in_range(static_cast<double>(**integer));
    if (const auto* number = std::get_if<double*>(&value)) in_range(**number);
    if (const auto* number = std::get_if<std::optional<double>*>(&value); number && **number)
        in_range(***number);
    if (const auto* numbers = std::get_if<std::vector<int64_t>*>(&value))
        for (const auto number : **numbers) in_range(static_cast<double>(number));
    if (const auto* numbers = std::get_if<NumbersByName*>(&value))
        for (const auto& [module, number] : **numbers) in_range(number);
    if (const auto* word = std::get_if<std::string*>(&value); word && !choices.empty())
        if (std::find(choices.begin(), choices.end(), **word) == choices.end())
            fail(ErrorKind::usage, "--{}: \"{}\" is not known, expected one of {}{}", name, printable(**word),
                 fmt::join(choices, ", "), did_you_mean(**word, choices));
}

nlohmann::json Field::to_json() const {
    return std::visit(
        Overloaded{
            [](const std::optional<double>* v) { return *v ? nlohmann::json(**v) : nlohmann::json(); },
            // PEFT takes an empty list of tokens for one.
            [](const std::vector<int64_t>* v) { return v->empty() ? nlohmann::json() : nlohmann::json(*v); },
            [](const NumbersByName* v) {
                auto object = nlohmann::json::object();
                for (const auto& [module, number] : *v) object[module] = number_json(number);
                return object;
            },
            [](const auto* v) { return nlohmann::json(*v); },
        },
        value);
}

void Field::from_json(const nlohmann::json& json, const std::string& where) const {
    auto need = [](bool fits) {
        if (!fits) throw std::invalid_argument("");
    };
    try {
        std::visit(Overloaded{
                       [&](bool* v) {
                           need(json.is_boolean());
                           *v = json.get<bool>();
                       },
                       [&](int64_t* v) {
                           need(is_int64(json));
                           *v = json.get<int64_t>();
                       },
                       [&](double* v) {
                           need(json.is_number());
                           *v = json.get<double>();
                       },
                       [&](std::optional<double>* v) {
                           need(json.is_number() || json.is_null());
                           *v = json.is_null() ? std::nullopt : std::optional(json.get<double>());
                       },
                       [&](std::vector<int64_t>* v) {
                           need(json.is_array() || json.is_null());
                           v->clear();
                           for (const auto& entry : json) {
                               need(is_int64(entry));
                               v->push_back(entry.get<int64_t>());
                           }
                       },
                       [&](NumbersByName* v) {
                           need(json.is_object() || json.is_null());
                           v->clear();
                           for (const auto& [module, number] : json.items()) {
                               need(number.is_number());
                               v->emplace_back(module, number.get<double>());
                           }
                       },
                       [&](auto* v) { json.get_to(*v); },
                   },
                   value);
        check();
    } catch (const std::exception&) {
        const auto range = range_text(*this);
        fail(ErrorKind::format, "{}: key \"{}\" has the value {}, which does not fit: {}{}", where,
             config_key(), printable(json.dump(), kShownValue), help,
             range.empty() ? "" : fmt::format(" ({})", range));
    }
}

const Field* find_field(const Fields& fields, const std::string& name) {
    const auto found =
        std::find_if(fields.begin(), fields.end(), [&](const Field& field) { return field.name == name; });
    return found == fields.end() ? nullptr : &*found;
}

}  // namespace ether
