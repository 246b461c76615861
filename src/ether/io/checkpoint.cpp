#include "ether/io/checkpoint.h"

#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "ether/core/error.h"
#include "ether/core/hash.h"
#include "ether/core/json.h"
#include "ether/core/near_name.h"
#include "ether/core/utf8.h"
#include "ether/io/adapter_folder.h"
#include "ether/io/file.h"

namespace ether::io {
namespace fs = std::filesystem;
namespace {

constexpr const char* kConfigFile = "config.json";
constexpr const char* kWeightsFile = "model.safetensors";
constexpr const char* kIndexFile = "model.safetensors.index.json";

[[noreturn]] void fail_without_weights(const fs::path& folder) {
    const std::string name = folder.string();
    for (const char* pickled : {"pytorch_model.bin", "pytorch_model.bin.index.json"})
        if (has_entry(folder / pickled))
            fail(ErrorKind::model,
                 "{0}: holds {1} but no {2}; pickled weights are not read, convert them: python -c \"from "
                 "transformers "
                 "import AutoModel; AutoModel.from_pretrained('{0}').save_pretrained('{0}', "
                 "safe_serialization=True)\"",
                 name, pickled, kWeightsFile);
    fail(ErrorKind::model, "{}: expected {} or {}, found neither", name, kWeightsFile, kIndexFile);
}

}  // namespace

int64_t Checkpoint::tokenizer_max_length() const {
    const auto path = path_ / kTokenizerConfigFile;
    const auto unlimited = std::numeric_limits<int64_t>::max();
    if (!has_entry(path)) return unlimited;
    const auto config = JsonObject::load(path);
    const auto value = config.document().find("model_max_length");  // 1e30 where transformers knows none
    if (value == config.document().end() || !is_int64(*value) || *value < 1) return unlimited;
    return value->get<int64_t>();
}

Checkpoint Checkpoint::open(const fs::path& folder) {
    std::error_code code;
    const fs::file_status status = fs::status(folder, code);
    if (!fs::exists(status))
        fail(ErrorKind::file, "{}: cannot open the model folder: {}", folder.string(),
             code ? code.message() : "it does not exist");
    if (!fs::is_directory(status))
        fail(ErrorKind::file, "{}: expected a model folder, found a file", folder.string());
    if (!has_entry(folder / kConfigFile)) {
        const bool adapter = has_entry(folder / kAdapterConfigFile);
        fail(ErrorKind::model, "{}: holds no {}{}", folder.string(), kConfigFile,
             adapter ? "; it is an adapter's folder, name that of its base model"
                     : ", so it is not a model folder");
    }
    Checkpoint checkpoint(folder, JsonObject::load(folder / kConfigFile));
    if (has_entry(folder / kWeightsFile))  // as transformers does, before any index
        checkpoint.add_shard(folder / kWeightsFile);
    else if (has_entry(folder / kIndexFile))
        checkpoint.add_indexed_shards(folder / kIndexFile);
    else
        fail_without_weights(folder);
    return checkpoint;
}

void Checkpoint::add_shard(const fs::path& file) {
    SafetensorsFile shard(file);
    for (const std::string& name : shard.names()) {
        const auto [entry, added] = shard_of_.emplace(name, shards_.size());
        if (!added)
            fail(ErrorKind::format, "{}: tensor \"{}\" is in {} too", file.string(), printable(name, 120),
                 shards_[entry->second].path().filename().string());
    }
    shards_.push_back(std::move(shard));
}

void Checkpoint::add_indexed_shards(const fs::path& index_path) {
    const JsonObject weights = JsonObject::load(index_path).object("weight_map");
    std::set<std::string> files;
    for (const std::string& name : weights.keys()) {
        const auto file = weights.get<std::string>(name);
        // The name comes from a downloaded file and must not lead out of the folder.
        if (file.empty() || file == "." || file == ".." ||
            file.find_first_of(std::string_view("/\\\0", 3)) != std::string::npos)
            fail(ErrorKind::format,
                 "{}: tensor \"{}\": expected the name of a file in this folder, found \"{}\"",
                 index_path.string(), printable(name, 120), printable(file));
        files.insert(file);
    }
    if (files.empty()) fail(ErrorKind::format, "{}: \"weight_map\" is empty", index_path.string());
    for (const std::string& file : files) {
        if (!has_entry(path_ / file))
            fail(ErrorKind::file, "{}: the shard is missing; {} names it, so the download is not complete",
                 (path_ / file).string(), kIndexFile);
        add_shard(path_ / file);
    }
    for (const std::string& name : weights.keys()) {
        const auto file = weights.get<std::string>(name);
        const auto found = shard_of_.find(name);
        if (found == shard_of_.end() || shards_[found->second].path().filename() != file)
            fail(ErrorKind::format, "{}: tensor \"{}\" should be in {} but is not", index_path.string(),
                 printable(name, 120), printable(file));
    }
}

std::vector<fs::path> Checkpoint::weight_files() const {
    std::vector<fs::path> files;
    for (const auto& shard : shards_) files.push_back(shard.path());
    return files;
}

std::vector<std::string> Checkpoint::names() const {
    std::vector<std::string> names;
    for (const auto& [name, shard] : shard_of_) names.push_back(name);
    return names;
}

const SafetensorsFile& Checkpoint::shard(std::string_view name) const {
    const auto found = shard_of_.find(name);
    if (found == shard_of_.end())
        fail(ErrorKind::model, "{}: the model has no tensor \"{}\"{}", path_.string(), printable(name, 120),
             did_you_mean(name, names()));
    return shards_[found->second];
}

std::string Checkpoint::fingerprint() const {
    Hash hash;
    for (const auto& [name, index] : shard_of_) {
        const TensorInfo& info = shards_[index].info(name);
        const std::span<const std::byte> data = shards_[index].bytes(name);
        hash.add(name);
        hash.add(info.dtype);
        hash.add(info.shape.data(), info.shape.size() * sizeof(int64_t));
        hash.add(data.data(), data.size());
        shards_[index].release(name);
    }
    return std::string(kFingerprintKind) + hash.hex();
}

}  // namespace ether::io
