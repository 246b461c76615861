// A base model as a Hugging Face folder: config.json beside model.safetensors, or beside an index and its
// shards. Immutable, cheap to copy (copies share the memory maps), safe to share between threads. A folder
// that is incomplete or contradicts itself is an Error that names the file, thrown by open().
#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "ether/io/json_reader.h"
#include "ether/io/safetensors.h"

namespace ether::io {

inline constexpr const char* kTokenizerFile = "tokenizer.json";
inline constexpr const char* kTokenizerConfigFile = "tokenizer_config.json";
inline constexpr std::string_view kFingerprintKind = "xxh3:";  // others cannot be compared

class Checkpoint {
  public:
    // Reads config.json and every header; no tensor data. Tensors are known by their names in the files.
    static Checkpoint open(const std::filesystem::path& folder);

    const std::filesystem::path& path() const { return path_; }
    const JsonObject& config() const { return config_; }

    std::vector<std::filesystem::path> weight_files() const;

    // model_max_length of tokenizer_config.json; the largest integer where it says nothing.
    int64_t tokenizer_max_length() const;

    std::vector<std::string> names() const;  // sorted
    bool contains(std::string_view name) const { return shard_of_.contains(name); }
    const TensorInfo& info(std::string_view name) const { return shard(name).info(name); }
    // See SafetensorsFile.
    at::Tensor tensor(std::string_view name) const { return shard(name).tensor(name); }
    at::Tensor weight(std::string_view name) const { return shard(name).weight(name); }
    void release(std::string_view name) const { shard(name).release(name); }

    // "xxh3:" and 32 hex digits that tell models apart, to check that an adapter meets its base: a hash (not
    // a cryptographic one) over each tensor's name, dtype, shape and data, in order of names. How tensors are
    // spread over files and config.json do not matter. Reads all weights.
    std::string fingerprint() const;

  private:
    Checkpoint(std::filesystem::path path, JsonObject config)
        : path_(std::move(path)), config_(std::move(config)) {}
    void add_shard(const std::filesystem::path& file);
    void add_indexed_shards(const std::filesystem::path& index_path);
    const SafetensorsFile& shard(std::string_view name) const;  // an absent name is an error of kind `model`

    std::filesystem::path path_;
    JsonObject config_;
    std::vector<SafetensorsFile> shards_;
    std::map<std::string, size_t, std::less<>> shard_of_;
};

}  // namespace ether::io
