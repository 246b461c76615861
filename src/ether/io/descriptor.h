// For what reads and writes files: a descriptor that closes itself, folders, the error of a failed call.
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <string_view>
#include <system_error>

#include "ether/core/error.h"

namespace ether::io {

[[noreturn]] inline void fail_system(const std::filesystem::path& path, std::string_view action, int code) {
    fail(ErrorKind::file, "{}: cannot {}: {}", path.string(), action, std::generic_category().message(code));
}

class Descriptor {
  public:
    Descriptor(const std::filesystem::path& path, int flags)
        : value_(::open(path.c_str(), flags | O_CLOEXEC)) {
        if (value_ < 0) fail_system(path, "open", errno);
    }
    ~Descriptor() { ::close(value_); }
    Descriptor(const Descriptor&) = delete;
    Descriptor& operator=(const Descriptor&) = delete;
    int get() const { return value_; }

  private:
    int value_;
};

}  // namespace ether::io
