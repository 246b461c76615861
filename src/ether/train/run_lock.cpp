#include "ether/train/run_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include "ether/core/error.h"
#include "ether/io/descriptor.h"

namespace ether::train {

RunLock::RunLock(const std::filesystem::path& folder) : path_(folder / ".lock") {
    std::error_code error;
    std::filesystem::create_directories(folder, error);
    if (error) fail(ErrorKind::file, "{}: cannot make the run folder: {}", folder.string(), error.message());
    descriptor_ = io::open_own(path_, O_RDWR, 0644);
    if (::flock(descriptor_, LOCK_EX | LOCK_NB) != 0) {
        ::close(descriptor_);
        fail(ErrorKind::file,
             "{}: another process is training in this folder; wait for it or choose another --out",
             folder.string());
    }
}

RunLock::~RunLock() { ::close(descriptor_); }

void RunLock::check() const {
    if (io::is_at(descriptor_, path_)) return;
    fail(ErrorKind::file,
         "{}: the folder, or .lock in it, was removed or replaced while the run went on, so the run stops "
         "here",
         path_.parent_path().string());
}

}  // namespace ether::train
