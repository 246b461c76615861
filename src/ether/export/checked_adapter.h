// An adapter's folder written for a model with another adapter of the same function, and read again.
#pragma once

#include <filesystem>
#include <string>

#include "ether/eval/loaded_adapter.h"
#include "ether/export/probe.h"
#include "ether/io/adapter_folder.h"

namespace ether::exporting {

struct CheckedAdapter {
    eval::LoadedAdapter adapter;  // as read again, on the same base
    Comparison comparison;
    int64_t bytes = 0;  // of its tensors' file
};

// Into a folder that gets its name later; `what` is what messages call it. Throws if a tensor does not read
// back bit by bit, if the logits of a probe are not finite, and, exact, if they differ from those of `loaded`
// by more than Comparison::tolerance.
CheckedAdapter write_checked(eval::LoadedAdapter& loaded, const io::AdapterFiles& files,
                             const std::filesystem::path& folder, const std::string& what, bool exact);

// ether.json of such an adapter: its task and base are those of `loaded`.
nlohmann::json description_like(eval::LoadedAdapter& loaded);

}  // namespace ether::exporting
