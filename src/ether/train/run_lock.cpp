#include "ether/train/run_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "ether/core/error.h"

namespace ether::train {

RunLock::RunLock(const std::filesystem::path& folder) : path_(folder / ".lock") {
    std::error_code error;
    std::filesystem::create_directories(folder, error);
    if (error) fail(ErrorKind::file, "{}: cannot make the run folder: {}", folder.string(), error.message());
    // Not through a link, which may lead to a file of someone else's.
    descriptor_ = ::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0644);
    if (descriptor_ < 0 && errno == ELOOP)
        fail(ErrorKind::file, "{}: cannot open: it is a link, which is not followed", path_.string());
    if (descriptor_ < 0) fail(ErrorKind::file, "{}: cannot open: {}", path_.string(), std::strerror(errno));
    if (::flock(descriptor_, LOCK_EX | LOCK_NB) != 0) {
        ::close(descriptor_);
        fail(ErrorKind::file,
             "{}: another process is training in this folder; wait for it or choose another --out",
             folder.string());
    }
}

RunLock::~RunLock() { ::close(descriptor_); }

void RunLock::check() const {
    struct stat held {};
    struct stat there {};
    if (::fstat(descriptor_, &held) == 0 && ::stat(path_.c_str(), &there) == 0 &&
        held.st_dev == there.st_dev && held.st_ino == there.st_ino)
        return;
    fail(ErrorKind::file,
         "{}: the folder was removed or replaced while the run went on, so the run stops here",
         path_.parent_path().string());
}

}  // namespace ether::train
