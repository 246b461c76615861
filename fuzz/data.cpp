// Files of examples: the first byte chooses the format (j, c, t, p: JSON, CSV, TSV, plain text; in capitals
// without quoting and with a second text), the rest is the file.
#include <sstream>

#include "ether/core/utf8.h"
#include "ether/data/table.h"
#include "fuzz.h"

namespace ether {
namespace {

data::TableFormat format_of(char letter) {
    switch (letter | 0x20) {
        case 'j':
            return data::TableFormat::json;
        case 'c':
            return data::TableFormat::csv;
        case 't':
            return data::TableFormat::tsv;
        default:
            return data::TableFormat::text;
    }
}

void read(std::string_view bytes) {
    if (bytes.empty()) return;
    const bool capital = bytes[0] >= 'A' && bytes[0] <= 'Z';
    std::istringstream stream{std::string(bytes.substr(1))};
    const auto examples = data::read_examples(stream, "a", format_of(bytes[0]),
                                              {.pair_column = capital ? "pair" : "",
                                               .quoting = capital ? "none" : "minimal",
                                               .labels_required = !capital});
    ETHER_ASSERT(!examples.empty());
    for (const auto& example : examples) ETHER_ASSERT(find_invalid_utf8(example.text) == std::string::npos);
    data::label_kind(examples);
}

}  // namespace
}  // namespace ether

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    return ether::fuzz::expect_an_answer([&] { ether::read(ether::fuzz::view(data, size)); });
}
