#include "ether/train/run_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "ether/core/error.h"

namespace ether::train {

RunLock::RunLock(const std::filesystem::path& folder) {
    std::error_code error;
    std::filesystem::create_directories(folder, error);
    if (error) fail(ErrorKind::file, "{}: cannot make the run folder: {}", folder.string(), error.message());
    const auto path = folder / ".lock";
    descriptor_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (descriptor_ < 0) fail(ErrorKind::file, "{}: cannot open: {}", path.string(), std::strerror(errno));
    if (::flock(descriptor_, LOCK_EX | LOCK_NB) != 0) {
        ::close(descriptor_);
        fail(ErrorKind::file,
             "{}: another process is training in this folder; wait for it or choose another --out",
             folder.string());
    }
}

RunLock::~RunLock() { ::close(descriptor_); }

}  // namespace ether::train
