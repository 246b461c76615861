#include "ether/io/toml.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "ether/core/error.h"
#include "ether/core/utf8.h"

namespace ether::io {
namespace {

class TomlParser {
  public:
    TomlParser(std::string_view text, const std::string& name) : text_(text), name_(name) {}

    std::vector<TomlEntry> entries() {
        std::vector<TomlEntry> entries;
        for (skip_blank(); at_ < text_.size(); skip_blank()) {
            if (peek() == '[')
                refuse("options stand at the top level of the file, as key = value; remove the line {}",
                       rest_of_line());
            TomlEntry entry{.key = key(), .values = {}, .line = line_};
            if (std::ranges::find(entries, entry.key, &TomlEntry::key) != entries.end())
                refuse("the key \"{}\" stands here for the second time", printable(entry.key));
            skip_spaces();
            if (!skip('=')) refuse("expected = after \"{}\"", printable(entry.key));
            skip_spaces();
            entry.values = peek() == '[' ? list() : std::vector{value()};
            skip_spaces();
            if (at_ < text_.size() && peek() != '\n' && peek() != '#')
                refuse("expected the line's end after the value of \"{}\", found {}", printable(entry.key),
                       rest_of_line());
            entries.push_back(std::move(entry));
        }
        return entries;
    }

  private:
    template <typename... Values>
    [[noreturn]] void refuse(fmt::format_string<Values...> what, Values&&... values) const {
        fail(ErrorKind::format, "{}:{}: {}", name_, line_,
             fmt::format(what, std::forward<Values>(values)...));
    }

    char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }
    bool skip(char c) {
        if (peek() != c) return false;
        ++at_;
        return true;
    }
    void skip_spaces() {
        while (peek() == ' ' || peek() == '\t' || peek() == '\r') ++at_;
    }
    // Spaces, comments and lines' ends.
    void skip_blank() {
        for (skip_spaces(); at_ < text_.size() && (peek() == '\n' || peek() == '#'); skip_spaces()) {
            at_ = std::min(text_.find('\n', at_), text_.size());
            if (skip('\n')) ++line_;
        }
    }
    std::string rest_of_line() const {
        return printable(text_.substr(at_, text_.find_first_of("\r\n", at_) - at_));
    }
    std::string_view word(std::string_view end) {
        const size_t start = at_;
        at_ = std::min(text_.find_first_of(end, at_), text_.size());
        return text_.substr(start, at_ - start);
    }

    std::string key() {
        if (peek() == '"' || peek() == '\'') return quoted();
        const auto name = word(" \t\r\n=#");
        if (name.empty()) refuse("expected key = value, found {}", rest_of_line());
        return std::string(name);
    }

    std::string value() {
        if (peek() == '"' || peek() == '\'') return quoted();
        const auto found = word(" \t\r\n,]#");
        if (found.empty()) refuse("expected a value: a text in quotes, a number, true or false");
        const bool number = found.find_first_of("0123456789") <= found.find_first_not_of("+-.");
        if (!number && found != "true" && found != "false")
            refuse("expected a number, true or false, found {0}; a text stands in quotes: \"{0}\"",
                   printable(found));
        return std::string(found);
    }

    // In single quotes everything is itself; in double quotes a backslash begins an escape, as in JSON.
    std::string quoted() {
        const char quote = peek();
        const size_t start = at_++;
        if (text_.substr(start, 3) == std::string(3, quote))
            refuse("texts of several lines are not read here");
        for (; peek() != quote; ++at_) {
            if (quote == '"' && peek() == '\\') ++at_;
            if (at_ >= text_.size() || peek() == '\n')
                refuse("the text {} is never closed; end it with {}",
                       printable(text_.substr(start, text_.find_first_of("\r\n", start) - start)), quote);
        }
        ++at_;
        const auto whole = text_.substr(start, at_ - start);
        if (quote == '\'') return std::string(whole.substr(1, whole.size() - 2));
        const auto text = nlohmann::json::parse(whole, nullptr, false);
        if (text.is_discarded())
            refuse("{} holds an escape that is not known; in single quotes a backslash is itself",
                   printable(whole));
        return text.get<std::string>();
    }

    std::vector<std::string> list() {
        const int64_t first_line = line_;
        std::vector<std::string> values;
        ++at_;
        for (skip_blank(); !skip(']'); skip_blank()) {
            values.push_back(value());
            skip_blank();
            if (!skip(',') && peek() != ']')
                refuse("expected , or ] in the list that begins on line {}", first_line);
        }
        return values;
    }

    std::string_view text_;
    const std::string& name_;
    size_t at_ = 0;
    int64_t line_ = 1;
};

}  // namespace

std::vector<TomlEntry> parse_toml(std::string_view text, const std::string& name) {
    if (text.starts_with("\xef\xbb\xbf")) text.remove_prefix(3);
    return TomlParser(text, name).entries();
}

}  // namespace ether::io
