#include "ether/data/labels.h"

#include <algorithm>
#include <numeric>
#include <set>
#include <utility>
#include <variant>

#include "ether/core/error.h"
#include "ether/core/near_name.h"
#include "ether/core/utf8.h"

namespace ether::data {
namespace {

constexpr size_t kShownNames = 10;

std::string class_name(const Example& example, const std::string& file) {
    if (const auto* name = std::get_if<std::string>(&example.label)) return *name;
    if (const auto* integer = std::get_if<int64_t>(&example.label)) return std::to_string(*integer);
    if (const auto* real = std::get_if<double>(&example.label))
        fail(ErrorKind::data,
             "{}:{}: expected a class (a string or an integer), found the number {:#}; real numbers are for "
             "regression",
             file, example.line, *real);
    fail(ErrorKind::data, "{}:{}: expected a label, found none", file, example.line);
}

}  // namespace

LabelSet::LabelSet(std::vector<std::string> names) : names_(std::move(names)), by_name_(names_.size()) {
    std::iota(by_name_.begin(), by_name_.end(), int64_t{0});
    std::ranges::sort(by_name_, {},
                      [this](int64_t i) { return std::string_view(names_[static_cast<size_t>(i)]); });
}

LabelSet LabelSet::from_examples(std::span<const Example> examples, const std::string& file) {
    // Integers sort by value, strings by bytes; a table never mixes them.
    std::set<std::pair<int64_t, std::string>> found;
    for (const Example& example : examples) {
        const auto* integer = std::get_if<int64_t>(&example.label);
        found.emplace(integer != nullptr ? *integer : 0, class_name(example, file));
    }
    if (found.size() < 2)
        fail(ErrorKind::data, "{}: expected two or more different labels, found {}", file,
             found.empty() ? "none" : fmt::format("only \"{}\"", printable(found.begin()->second)));
    std::vector<std::string> names;
    for (const auto& [value, name] : found) names.push_back(name);
    return LabelSet(std::move(names));
}

LabelSet LabelSet::from_names(std::vector<std::string> names, const std::string& file) {
    LabelSet labels(std::move(names));
    for (size_t i = 1; i < labels.by_name_.size(); ++i) {
        const std::string& name = labels.names_[static_cast<size_t>(labels.by_name_[i])];
        if (name == labels.names_[static_cast<size_t>(labels.by_name_[i - 1])])
            fail(ErrorKind::data, "{}: two classes are called \"{}\"", file, printable(name));
    }
    return labels;
}

int64_t LabelSet::index(const Example& example, const std::string& file) const {
    const std::string name = class_name(example, file);
    const auto found = std::ranges::lower_bound(by_name_, std::string_view(name), {}, [this](int64_t i) {
        return std::string_view(names_[static_cast<size_t>(i)]);
    });
    if (found != by_name_.end() && names_[static_cast<size_t>(*found)] == name) return *found;
    // Without names of their own classes are called LABEL_0, LABEL_1, ...; their numbers say as much.
    if (const auto* number = std::get_if<int64_t>(&example.label);
        number && *number >= 0 && *number < size() && names_[static_cast<size_t>(*number)] == "LABEL_" + name)
        return *number;
    std::string list;
    for (size_t i = 0; i < std::min(names_.size(), kShownNames); ++i)
        list += (i == 0 ? "" : ", ") + printable(names_[i]);
    if (names_.size() > kShownNames) list += ", ...";
    fail(ErrorKind::data, "{}:{}: unknown label \"{}\"; the {} labels are {}{}", file, example.line,
         printable(name), names_.size(), list, did_you_mean(name, names_));
}

}  // namespace ether::data
