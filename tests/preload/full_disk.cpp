// Preloaded into a program, lets its disk be full from one call on: of all calls that need room (writing,
// making, naming or syncing a file), number ETHER_FULL_AFTER and those after it fail with ENOSPC. The
// terminal's are not counted.
#include <dlfcn.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdarg>
#include <cstdlib>

namespace {

bool is_full() {
    static std::atomic<long> calls{0};
    static const char* after = std::getenv("ETHER_FULL_AFTER");
    if (after == nullptr || ++calls <= std::atol(after)) return false;
    errno = ENOSPC;
    return true;
}

bool is_on_disk(int file) {
    struct stat status {};
    return file > STDERR_FILENO && fstat(file, &status) == 0 && S_ISREG(status.st_mode);
}

}  // namespace

extern "C" {

ssize_t write(int file, const void* data, size_t size) {
    if (is_on_disk(file) && is_full()) return -1;
    return syscall(SYS_write, file, data, size);
}

int fsync(int file) {
    if (is_on_disk(file) && is_full()) return -1;
    return static_cast<int>(syscall(SYS_fsync, file));
}

int rename(const char* from, const char* to) {
    return is_full() ? -1 : static_cast<int>(syscall(SYS_rename, from, to));
}

int renameat2(int from_folder, const char* from, int to_folder, const char* to, unsigned flags) {
    return is_full() ? -1 : static_cast<int>(syscall(SYS_renameat2, from_folder, from, to_folder, to, flags));
}

int mkdir(const char* path, mode_t mode) {
    return is_full() ? -1 : static_cast<int>(syscall(SYS_mkdir, path, mode));
}

int open(const char* path, int flags, ...) {
    va_list arguments;
    va_start(arguments, flags);
    const mode_t mode = flags & O_CREAT ? va_arg(arguments, mode_t) : 0;
    va_end(arguments);
    struct stat status {};
    if (flags & O_CREAT && stat(path, &status) != 0 && is_full()) return -1;
    return static_cast<int>(syscall(SYS_openat, AT_FDCWD, path, flags, mode));
}
}
