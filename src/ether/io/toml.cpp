#include "ether/io/toml.h"

// Some texts break what the parser takes for granted ("[[["), which is undefined behaviour under NDEBUG: here
// it throws.
#undef NDEBUG
#define TOML_ASSERT(condition) ((condition) ? void() : ether::io::throw_broken_assumption())
namespace ether::io {
void throw_broken_assumption();
}
#include <toml++/toml.h>

#include <algorithm>
#include <utility>

#include "ether/core/error.h"
#include "ether/core/utf8.h"

namespace ether::io {
namespace {

struct BrokenAssumption {};

// Words of the parser's messages, and what to do about them.
constexpr std::pair<std::string_view, const char*> kAdvice[] = {
    {"escape sequence", "; in single quotes a backslash is itself"},
    {"string: ", "; a text ends on its line, with the quote that it began with"},
    {"determine value type", "; a text stands in quotes"},
};

class Document {
  public:
    Document(std::string_view text, const std::string& name) : text_(text), name_(name) {}

    std::vector<TomlEntry> entries() const {
        std::vector<TomlEntry> entries;
        for (const auto& [key, value] : parsed()) {
            TomlEntry entry{.key = std::string(key.str()), .values = {}, .line = key.source().begin.line};
            if (const auto* list = value.as_array())
                for (const auto& item : *list) entry.values.push_back(single(item, entry));
            else
                entry.values.push_back(single(value, entry));
            entries.push_back(std::move(entry));
        }
        std::ranges::sort(entries, {}, &TomlEntry::line);
        return entries;
    }

  private:
    toml::table parsed() const {
        try {
            return toml::parse(text_);
        } catch (const toml::parse_error& error) {
            const std::string_view what = error.description();
            const auto* advice = std::ranges::find_if(
                kAdvice, [&](const auto& entry) { return what.find(entry.first) != what.npos; });
            const int64_t line = error.source().begin.line;
            fail(ErrorKind::format, "{}:{}: {}, in: {}{}", name_, line, printable(what, 160), line_text(line),
                 advice == std::end(kAdvice) ? "" : advice->second);
        } catch (const BrokenAssumption&) {
            fail(ErrorKind::format, "{}: not valid TOML; options stand as key = value, one a line", name_);
        }
    }

    std::string single(const toml::node& value, const TomlEntry& entry) const {
        if (const auto* text = value.as_string()) return **text;
        if (const auto* integer = value.as_integer()) return fmt::to_string(**integer);
        if (const auto* number = value.as_floating_point()) return fmt::to_string(**number);
        if (const auto* flag = value.as_boolean()) return **flag ? "true" : "false";
        if (value.is_table())
            fail(ErrorKind::format,
                 "{}:{}: options stand at the top level of the file, as key = value; remove the line {}",
                 name_, entry.line, line_text(entry.line));
        fail(ErrorKind::format, "{}:{}: \"{}\": expected a text in quotes, a number, true or false", name_,
             entry.line, printable(entry.key));
    }

    std::string line_text(int64_t line) const {
        auto rest = text_;
        for (; line > 1; --line) rest.remove_prefix(std::min(rest.find('\n'), rest.size() - 1) + 1);
        return printable(rest.substr(0, rest.find_first_of("\r\n")));
    }

    std::string_view text_;
    const std::string& name_;
};

}  // namespace

void throw_broken_assumption() { throw BrokenAssumption(); }

std::vector<TomlEntry> parse_toml(std::string_view text, const std::string& name) {
    return Document(text, name).entries();
}

}  // namespace ether::io
