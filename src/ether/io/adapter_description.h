// ether.json: what an adapter of ours says of itself, and whether it belongs to a base model.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "ether/io/adapter_folder.h"
#include "ether/io/base_identity.h"
#include "ether/io/json_reader.h"

namespace ether::io {

// The adapter's and the base model's names, for messages; force: an adapter that was trained on another base
// is taken, too.
struct AdapterUse {
    std::string adapter, model;
    bool force = false;
};

// The description of an adapter that was trained on this base, another one is an error. Absent in PEFT's own.
// What a user should know besides is added to `notes`.
std::optional<JsonObject> description_of(const AdapterFiles& files, const BaseIdentity& base,
                                         const AdapterUse& use, std::vector<std::string>& notes);

}  // namespace ether::io
