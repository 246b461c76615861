#include "ether/data/csv.h"

#include <utility>

#include "ether/core/error.h"

namespace ether::data {
namespace {

constexpr const char* kLiteralQuotes = "; where quotes are letters like others, give --quoting none";

class CsvParser {
  public:
    CsvParser(std::string_view text, char separator, const std::string& name, Quoting quoting)
        : text_(text), separator_(separator), name_(name), quoting_(quoting) {}

    std::vector<CsvRow> rows() {
        std::vector<CsvRow> rows;
        while (at_ < text_.size()) {
            if (skip_line_end()) continue;  // an empty line
            CsvRow row{{}, line_};
            do row.fields.push_back(field());
            while (skip(separator_));
            if (at_ < text_.size() && !skip_line_end())
                fail(ErrorKind::data,
                     "{}:{}: after a field's closing quote: expected a separator or the line's end{}", name_,
                     line_, kLiteralQuotes);
            if (!rows.empty() && row.fields.size() != rows[0].fields.size())
                fail(ErrorKind::data, "{}:{}: found {} fields where the first row has {}{}", name_, row.line,
                     row.fields.size(), rows[0].fields.size(),
                     quoting_ == Quoting::minimal ? "; quote fields that hold the separator" : "");
            rows.push_back(std::move(row));
        }
        return rows;
    }

  private:
    bool skip(char c) {
        if (at_ >= text_.size() || text_[at_] != c) return false;
        ++at_;
        return true;
    }

    bool at_line_end() const {
        return text_[at_] == '\n' || (text_[at_] == '\r' && at_ + 1 < text_.size() && text_[at_ + 1] == '\n');
    }

    bool skip_line_end() {
        if (!at_line_end()) return false;
        at_ += text_[at_] == '\r' ? 2 : 1;
        ++line_;
        return true;
    }

    std::string field() {
        if (quoting_ == Quoting::minimal && skip('"')) return quoted();
        const size_t start = at_;
        while (at_ < text_.size() && text_[at_] != separator_ && !at_line_end()) ++at_;
        return std::string(text_.substr(start, at_ - start));
    }

    std::string quoted() {
        const int64_t first_line = line_;
        std::string value;
        for (;;) {
            const size_t quote = text_.find('"', at_);
            if (quote == std::string_view::npos)
                fail(ErrorKind::data, "{}:{}: a quoted field begins here and is never closed{}", name_,
                     first_line, kLiteralQuotes);
            for (size_t i = at_; i < quote; ++i) line_ += text_[i] == '\n';
            value += text_.substr(at_, quote - at_);
            at_ = quote + 1;
            if (!skip('"')) return value;
            value += '"';
        }
    }

    std::string_view text_;
    char separator_;
    const std::string& name_;
    Quoting quoting_;
    size_t at_ = 0;
    int64_t line_ = 1;
};

}  // namespace

std::vector<CsvRow> parse_csv(std::string_view text, char separator, const std::string& name,
                              Quoting quoting) {
    return CsvParser(text, separator, name, quoting).rows();
}

}  // namespace ether::data
