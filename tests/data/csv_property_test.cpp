#include <gtest/gtest.h>
#include <rapidcheck.h>
#include <rapidcheck/gtest.h>

#include "ether/data/csv.h"

namespace ether::data {
namespace {

// Any table, written with every field quoted, is read back as it was.
RC_GTEST_PROP(Csv, ReadsBackWhatIsQuoted, ()) {
    const auto columns = *rc::gen::inRange<size_t>(1, 5);
    const auto field =
        rc::gen::container<std::string>(rc::gen::element('a', '"', ',', '\n', '\r', ' ', '\t'));
    const auto rows = *rc::gen::container<std::vector<std::vector<std::string>>>(
        rc::gen::container<std::vector<std::string>>(columns, field));
    const bool carriage_return = *rc::gen::arbitrary<bool>();
    std::string text;
    for (const auto& row : rows) {
        for (size_t i = 0; i < row.size(); ++i) {
            text += i == 0 ? "\"" : ",\"";
            for (const char c : row[i]) text += c == '"' ? "\"\"" : std::string(1, c);
            text += '"';
        }
        text += carriage_return ? "\r\n" : "\n";
    }
    const auto read = parse_csv(text, ',', "f");
    RC_ASSERT(read.size() == rows.size());
    for (size_t i = 0; i < rows.size(); ++i) RC_ASSERT(read[i].fields == rows[i]);
}

}  // namespace
}  // namespace ether::data
