// LogFile: a callback that keeps a file of the run folder, which only grows until a resumed run cuts it to
// its checkpoint's length. Every record is written through at once, whole or not at all.
// One thread; failures are Errors that name the file.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "ether/core/hash.h"
#include "ether/train/callback.h"

namespace ether::train {

class LogFile : public Callback {
  public:
    explicit LogFile(std::string name) : name_(std::move(name)) {}
    ~LogFile() override;
    LogFile(const LogFile&) = delete;
    LogFile& operator=(const LogFile&) = delete;

    // Opens the file, or makes it, and cuts it to what was given to resume_log, else to nothing. A missing
    // file starts anew; one that does not begin with that is an error and stays as it is.
    void on_start(const RunInfo& info) override;

    std::string log_name() const override { return name_; }
    // Waits until all is on the disk. A file that was removed, replaced or written to meanwhile is made anew,
    // or goes on at its end.
    LogMark log_mark() override;
    int64_t empty_log_bytes() const override { return static_cast<int64_t>(header().size()); }
    bool lost_log() override { return std::exchange(lost_, false); }
    void resume_log(const LogMark& mark) override { kept_ = mark; }

  protected:
    void append(std::string_view record);
    // What a new file begins with.
    virtual std::string header() const { return ""; }

  private:
    [[noreturn]] void fail_to(const char* action) const;
    void open();
    int64_t length() const;
    // Takes the file's first bytes for what was written so far.
    void take(int64_t bytes);
    void begin();

    std::string name_;
    std::filesystem::path path_;
    int descriptor_ = -1;
    LogMark kept_;
    int64_t size_ = 0;
    std::unique_ptr<Hash> hash_;  // of the first size_ bytes
    bool lost_ = false;
};

}  // namespace ether::train
