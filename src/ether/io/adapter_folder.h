// An adapter's folder in PEFT's layout: adapter_config.json, adapter_model.safetensors and, ours, ether.json.
// A folder that holds adapter_config.json is whole, since that file is written last.
// Stateless; failures are Errors (kind `adapter` where the folder is not an adapter's) that name the file.
#pragma once

#include <array>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>

#include "ether/io/safetensors.h"

namespace ether::io {

inline constexpr const char* kAdapterConfigFile = "adapter_config.json";
inline constexpr const char* kAdapterWeightsFile = "adapter_model.safetensors";
inline constexpr const char* kEtherFile = "ether.json";
// All files of an adapter of ours.
inline constexpr std::array kAdapterFiles = {kAdapterConfigFile, kAdapterWeightsFile, kEtherFile};

// A run keeps its configuration beside its adapter; a folder with this file is a run's.
inline constexpr const char* kRunFile = "run.toml";
// In a run's checkpoints/step-N, from which it can go on.
inline constexpr const char* kRunStateFile = "state.json";

struct AdapterFiles {
    nlohmann::json config;  // adapter_config.json, an object
    NamedTensors tensors;   // names as in the file; sorted when read
    std::optional<nlohmann::json>
        ether;  // ether.json, an object: base fingerprint, labels, task; absent if PEFT's own
};

// Whether the folder has all files that write_adapter makes of an adapter of ours.
bool has_adapter(const std::filesystem::path& folder);

// Whether an adapter_model.bin, as PEFT wrote before safetensors, stands in for kAdapterWeightsFile.
enum class Pickles { refuse, read };

// The tensors lie on the file's map, read-only, and outlive a later rewrite of the folder.
AdapterFiles read_adapter(const std::filesystem::path& folder, Pickles pickles = Pickles::refuse);

// Makes the folder if needed; other files in it are left alone. Where it held another adapter, that one stops
// being whole before the first of its files is replaced, once all of the new one's lie ready. Callers who
// need all or nothing write into an AtomicFolder.
void write_adapter(const std::filesystem::path& folder, const AdapterFiles& files);

// Where a write_adapter was killed between an old adapter's end and the new one's names, gives them.
void finish_adapter(const std::filesystem::path& folder);

}  // namespace ether::io
