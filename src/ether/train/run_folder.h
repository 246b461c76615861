// A run's folder before its first step: what may be trained into, and what a killed process left there.
#pragma once

#include <filesystem>

namespace ether::train {

// An Error where no run can begin (or, resume, go on): the folder holds a run already (or none), or files
// that no run has made and one would replace. A folder that is not there yet is fine for a new run.
void check_run_folder(const std::filesystem::path& folder, bool resume);

// Finishes or removes what was being written when a process was killed.
void remove_leftovers(const std::filesystem::path& folder);

}  // namespace ether::train
