// RunLock: one process a run folder. The lock is the kernel's (flock), so one left by a dead process is not
// in the way.
#pragma once

#include <filesystem>

namespace ether::train {

class RunLock {
  public:
    // Makes the folder if needed; an error if another process trains in it.
    explicit RunLock(const std::filesystem::path& folder);
    ~RunLock();
    RunLock(const RunLock&) = delete;
    RunLock& operator=(const RunLock&) = delete;

  private:
    int descriptor_ = -1;
};

}  // namespace ether::train
