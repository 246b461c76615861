// The safetensors format: tensors read straight from a memory map, and written as the reference library
// writes them. A SafetensorsFile is immutable and cheap to copy (copies share the map); threads may share it.
// Everything a header says is checked before a byte of data is touched; failures are Errors that name the
// file.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "ether/io/atomic.h"
#include "ether/io/file.h"

namespace ether::io {

using NamedTensors = std::vector<std::pair<std::string, at::Tensor>>;

// How users read and type a dtype (--dtype): the format's name in small letters, "bf16".
std::string dtype_name(std::string_view stored);
std::string dtype_name(at::ScalarType type);

struct TensorInfo {
    std::string dtype;           // the format's name for it: "F32", "BF16", ...
    std::vector<int64_t> shape;  // at most 64 sizes, product within int64
    uint64_t offset = 0;         // of the data, in bytes from the start of the file
    uint64_t bytes = 0;
};

// Reads the dtypes F64 F32 F16 BF16 C64 I64 I32 I16 I8 U64 U32 U16 U8 BOOL F8_E4M3 F8_E5M2. The format's
// other ones (F8_E8M0, F8_E4M3FNUZ, F8_E5M2FNUZ, F6_E2M3, F6_E3M2, F4) may stand in a file, but tensor()
// refuses them.
class SafetensorsFile {
  public:
    explicit SafetensorsFile(const std::filesystem::path& path);

    std::vector<std::string> names() const;  // sorted
    bool contains(std::string_view name) const { return tensors_.contains(name); }
    const TensorInfo& info(std::string_view name) const;  // an absent name is an error of kind `model`

    // A CPU tensor on the map, which it keeps alive: read-only (writing into it faults). Where the data do
    // not lie at a multiple of the element's size, a copy of them.
    at::Tensor tensor(std::string_view name) const;
    // tensor() of a weight: F64, F32, F16 or BF16. Integers, or F8 without the scales that belong to it, are
    // an error: a quantised model's file, whose numbers are not the weights.
    at::Tensor weight(std::string_view name) const;
    std::span<const std::byte> bytes(std::string_view name) const;
    // The tensor's data need not stay in memory: a copy of them took their place.
    void release(std::string_view name) const { map_->release(bytes(name)); }

    const std::map<std::string, std::string>& metadata() const { return metadata_; }
    const std::filesystem::path& path() const { return map_->path(); }

  private:
    std::shared_ptr<const MappedFile> map_;
    std::map<std::string, TensorInfo, std::less<>> tensors_;
    std::map<std::string, std::string> metadata_;
};

// Writes the tensors (any device and strides; names unique) atomically and synced to disk. The file depends
// on the arguments alone, not on the order of `tensors`: large dtypes first, then by name, header padded to 8
// bytes.
void write_safetensors(const std::filesystem::path& path, const NamedTensors& tensors,
                       const std::map<std::string, std::string>& metadata = {});
// Likewise, and leaves it to the caller to commit.
void write_safetensors(AtomicFile& file, const NamedTensors& tensors,
                       const std::map<std::string, std::string>& metadata = {});

// Reads such a file again: an error that names the tensor unless each is there bit by bit.
void check_written(const std::filesystem::path& path, const NamedTensors& tensors);

}  // namespace ether::io
