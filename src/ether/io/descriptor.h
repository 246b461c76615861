// For what reads and writes files: a descriptor that closes itself, folders, the error of a failed call.
#pragma once

#include <fcntl.h>
#include <sys/stat.h>
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

// Opens a file that this program keeps, making it where it is missing: not through a link, which may lead to
// a file of someone else's, nor waiting for a pipe's other end. The caller closes it.
inline int open_own(const std::filesystem::path& path, int flags, mode_t mode) {
    const int descriptor = ::open(path.c_str(), flags | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, mode);
    if (descriptor < 0 && errno == ELOOP)
        fail(ErrorKind::file, "{}: cannot open: it is a link, which is not followed", path.string());
    if (descriptor < 0) fail_system(path, "open", errno);
    return descriptor;
}

// Whether the open file is still the one of that name.
inline bool is_at(int descriptor, const std::filesystem::path& path) {
    struct stat held {};
    struct stat there {};
    return ::fstat(descriptor, &held) == 0 && ::stat(path.c_str(), &there) == 0 &&
           held.st_dev == there.st_dev && held.st_ino == there.st_ino;
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
