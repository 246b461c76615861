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
    // An error where the folder is no longer the one that was locked: what is written now would be lost.
    void check() const;
    RunLock(const RunLock&) = delete;
    RunLock& operator=(const RunLock&) = delete;

  private:
    std::filesystem::path path_;
    int descriptor_ = -1;
};

}  // namespace ether::train
