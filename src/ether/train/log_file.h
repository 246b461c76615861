// LogFile: a callback that keeps a file of the run folder, which only grows until a resumed run cuts it to
// its checkpoint's length. Every record is written through at once, whole or not at all.
// One thread; failures are Errors that name the file.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <utility>

#include "ether/train/callback.h"

namespace ether::train {

class LogFile : public Callback {
  public:
    explicit LogFile(std::string name) : name_(std::move(name)) {}
    ~LogFile() override;
    LogFile(const LogFile&) = delete;
    LogFile& operator=(const LogFile&) = delete;

    // Opens the file, or makes it, and cuts it to the length given to resume_log, else to nothing. A missing
    // file starts anew; one that is shorter has lost records and is an error.
    void on_start(const RunInfo& info) override;

    std::string log_name() const override { return name_; }
    // Waits until all is on the disk. A file that was removed or replaced meanwhile is made anew, or goes on
    // at its end.
    int64_t log_bytes() override;
    bool lost_log() override { return std::exchange(lost_, false); }
    void resume_log(int64_t bytes) override { kept_ = bytes; }

  protected:
    void append(std::string_view record);
    // What a new file begins with.
    virtual std::string header() const { return ""; }

  private:
    [[noreturn]] void fail_to(const char* action) const;
    // At the end of what is there; returns its length.
    int64_t open();
    void begin();

    std::string name_;
    std::filesystem::path path_;
    int descriptor_ = -1;
    int64_t kept_ = 0, size_ = 0;
    bool lost_ = false;
};

}  // namespace ether::train
