// Comma- or tab-separated values by RFC 4180: quoted fields may hold the separator, line breaks and doubled
// quotes. Stateless; malformed text is an Error of kind `data` with file and line.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace ether::data {

struct CsvRow {
    std::vector<std::string> fields;
    int64_t line = 0;  // where the row begins, from 1
};

// none: a quote stands for itself everywhere, and a line is a row, as in GLUE's files.
enum class Quoting { minimal, none };

// All rows, the header too. Lines end in LF or CRLF; empty lines are skipped. A quote opens a quoted field
// only as the field's first character; elsewhere it stands for itself. Every row must have as many fields as
// the first.
std::vector<CsvRow> parse_csv(std::string_view text, char separator, const std::string& name,
                              Quoting quoting = Quoting::minimal);

}  // namespace ether::data
