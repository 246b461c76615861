// Lines of a file or of standard input as they come: who types or pipes them one by one can be answered one
// by one, and of what lies ready many are taken at once. Failures are Errors of kind `file`.
#pragma once

#include <cstdint>
#include <string>

namespace ether::app {

class LineReader {
  public:
    explicit LineReader(const std::string& path);  // empty: standard input
    ~LineReader();
    LineReader(const LineReader&) = delete;
    LineReader& operator=(const LineReader&) = delete;

    const std::string& name() const { return name_; }  // for errors

    // The first character that is no blank, and after [ or { the next one, too; waits for them, takes
    // nothing.
    std::string start();
    // Whole lines: waits for one, and adds those that are there, up to `most`. Empty at the end.
    std::string lines(int64_t most);
    // All that is left.
    std::string rest();

  private:
    bool ready() const;  // whether a read would not wait
    bool fill();         // false at the end

    std::string name_, buffer_;
    int descriptor_;
    bool begun_ = false, ended_ = false;  // begun: a byte order mark before the text is gone
};

}  // namespace ether::app
