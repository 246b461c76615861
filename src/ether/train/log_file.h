// LogFile: a callback that keeps a file of the run folder, which only grows until a resumed run cuts it to
// its checkpoint's length. Every record is written through at once, whole or not at all.
// One thread; failures are Errors that name the file.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

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
    // Waits until all is on the disk.
    int64_t log_bytes() const override;
    void resume_log(int64_t bytes) override { kept_ = bytes; }

  protected:
    void append(std::string_view record);
    bool empty() const { return size_ == 0; }

  private:
    [[noreturn]] void fail_to(const char* action) const;

    std::string name_;
    std::filesystem::path path_;
    int descriptor_ = -1;
    int64_t kept_ = 0, size_ = 0;
};

}  // namespace ether::train
