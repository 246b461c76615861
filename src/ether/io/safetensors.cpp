#include "ether/io/safetensors.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include <algorithm>
#include <bit>
#include <cctype>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

#include "ether/core/error.h"
#include "ether/core/json.h"
#include "ether/core/near_name.h"
#include "ether/core/utf8.h"
#include "ether/io/descriptor.h"
#include "ether/io/json_reader.h"

namespace ether::io {
using nlohmann::json;
namespace {

static_assert(std::endian::native == std::endian::little, "the format's data are little-endian");

constexpr uint64_t kLengthBytes = 8;               // the header's own length, before the header
constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the reference implementation's bound
constexpr size_t kMaxRank = 64;

struct DtypeEntry {
    const char* name;
    int bits;
    std::optional<at::ScalarType> type;  // none: recognised, not readable
};

// In the order in which the reference implementation lays tensors out in a file.
constexpr DtypeEntry kDtypes[] = {
    {"U64", 64, at::kUInt64},
    {"I64", 64, at::kLong},
    {"F64", 64, at::kDouble},
    {"C64", 64, at::kComplexFloat},
    {"F32", 32, at::kFloat},
    {"U32", 32, at::kUInt32},
    {"I32", 32, at::kInt},
    {"BF16", 16, at::kBFloat16},
    {"F16", 16, at::kHalf},
    {"U16", 16, at::kUInt16},
    {"I16", 16, at::kShort},
    {"F8_E5M2FNUZ", 8, std::nullopt},
    {"F8_E4M3FNUZ", 8, std::nullopt},
    {"F8_E8M0", 8, std::nullopt},
    {"F8_E4M3", 8, at::kFloat8_e4m3fn},
    {"F8_E5M2", 8, at::kFloat8_e5m2},
    {"I8", 8, at::kChar},
    {"U8", 8, at::kByte},
    {"F6_E3M2", 6, std::nullopt},
    {"F6_E2M3", 6, std::nullopt},
    {"F4", 4, std::nullopt},
    {"BOOL", 8, at::kBool},
};

const DtypeEntry* find_dtype(std::string_view name) {
    const auto* found = std::ranges::find(kDtypes, name, [](const DtypeEntry& entry) { return entry.name; });
    return found == std::end(kDtypes) ? nullptr : found;
}

const DtypeEntry* find_dtype(at::ScalarType type) {
    const auto* found = std::ranges::find(kDtypes, std::optional(type), &DtypeEntry::type);
    return found == std::end(kDtypes) ? nullptr : found;
}

std::string where(const std::filesystem::path& path, std::string_view name) {
    return fmt::format("{}: tensor \"{}\"", path.string(), printable(name, 120));
}

const json& member(const json& entry, const char* key, const std::string& where) {
    const auto found = entry.find(key);
    if (found == entry.end()) fail(ErrorKind::format, "{}: \"{}\" is missing in the header", where, key);
    return *found;
}

// A list of unsigned numbers that fit int64.
std::vector<int64_t> sizes(const json& value, const char* key, const std::string& where) {
    if (!value.is_array())
        fail(ErrorKind::format, "{}: \"{}\": expected a list of sizes, found {}", where, key,
             describe(value));
    std::vector<int64_t> result;
    for (const json& item : value) {
        if (!item.is_number_unsigned() || !is_int64(item))
            fail(ErrorKind::format, "{}: \"{}\": expected an integer from 0 to 2^63 - 1, found {}", where,
                 key, describe(item));
        result.push_back(item.get<int64_t>());
    }
    return result;
}

// Bytes that a tensor takes. The product counts sizes of 0 as 1, since strides are computed even for empty
// tensors.
uint64_t byte_count(const std::vector<int64_t>& shape, const DtypeEntry& dtype, const std::string& where) {
    if (shape.size() > kMaxRank)
        fail(ErrorKind::format, "{}: has {} dimensions, more than {}", where, shape.size(), kMaxRank);
    int64_t bits = dtype.bits;
    bool empty = false;
    for (const int64_t size : shape) {
        empty = empty || size == 0;
        if (__builtin_mul_overflow(bits, std::max<int64_t>(size, 1), &bits))
            fail(ErrorKind::format, "{}: its shape [{}] has more elements than 64 bits can count", where,
                 fmt::join(shape, ", "));
    }
    if (empty) return 0;
    if (bits % 8 != 0)
        fail(ErrorKind::format, "{}: shape [{}] of {} does not fill whole bytes", where,
             fmt::join(shape, ", "), dtype.name);
    return static_cast<uint64_t>(bits) / 8;
}

// Reads one header entry; `data_start` and `data_bytes` bound the file's data.
TensorInfo read_entry(const json& entry, uint64_t data_start, uint64_t data_bytes, const std::string& where) {
    if (!entry.is_object())
        fail(ErrorKind::format, "{}: expected an object, found {}", where, describe(entry));
    const json& dtype_name = member(entry, "dtype", where);
    const DtypeEntry* dtype =
        dtype_name.is_string() ? find_dtype(dtype_name.get_ref<const std::string&>()) : nullptr;
    if (dtype == nullptr) fail(ErrorKind::format, "{}: unknown dtype {}", where, describe(dtype_name));
    TensorInfo info;
    info.dtype = dtype->name;
    info.shape = sizes(member(entry, "shape", where), "shape", where);
    info.bytes = byte_count(info.shape, *dtype, where);
    const std::vector<int64_t> offsets = sizes(member(entry, "data_offsets", where), "data_offsets", where);
    if (offsets.size() != 2)
        fail(ErrorKind::format, "{}: \"data_offsets\": expected 2 numbers, found {}", where, offsets.size());
    const auto begin = static_cast<uint64_t>(offsets[0]), end = static_cast<uint64_t>(offsets[1]);
    if (begin > end || end > data_bytes)
        fail(ErrorKind::format,
             "{}: \"data_offsets\" [{}, {}] lie outside the file's {} bytes of data; it is damaged or was "
             "cut short",
             where, begin, end, data_bytes);
    if (end - begin != info.bytes)
        fail(ErrorKind::format, "{}: shape [{}] of {} takes {} bytes, but \"data_offsets\" [{}, {}] hold {}",
             where, fmt::join(info.shape, ", "), info.dtype, info.bytes, begin, end, end - begin);
    info.offset = data_start + begin;
    return info;
}

std::map<std::string, std::string> read_metadata(const json& value, const std::filesystem::path& path) {
    std::map<std::string, std::string> metadata;
    if (value.is_null()) return metadata;
    if (!value.is_object())
        fail(ErrorKind::format, "{}: \"__metadata__\": expected an object, found {}", path.string(),
             describe(value));
    for (const auto& item : value.items()) {
        if (!item.value().is_string())
            fail(ErrorKind::format, "{}: \"__metadata__\": key \"{}\": expected a string, found {}",
                 path.string(), printable(item.key()), describe(item.value()));
        metadata[item.key()] = item.value().get<std::string>();
    }
    return metadata;
}

// Tensors must follow one another without hole or overlap from the data's first byte to its last.
void check_layout(const std::map<std::string, TensorInfo, std::less<>>& tensors, uint64_t data_start,
                  uint64_t file_size, const std::filesystem::path& path) {
    std::vector<const std::pair<const std::string, TensorInfo>*> order;
    for (const auto& tensor : tensors) order.push_back(&tensor);
    std::ranges::sort(
        order, {}, [](const auto* tensor) { return std::pair(tensor->second.offset, tensor->second.bytes); });
    uint64_t expected = data_start;
    for (const auto* tensor : order) {
        const auto& [name, info] = *tensor;
        if (info.offset != expected)
            fail(ErrorKind::format, "{}: its data start at {}, {} the end of the tensor before it at {}",
                 where(path, name), info.offset - data_start,
                 info.offset < expected ? "overlapping" : "leaving a hole after", expected - data_start);
        expected += info.bytes;
    }
    if (expected != file_size)
        fail(ErrorKind::format,
             "{}: the tensors end at byte {}, but the file has {}; it is damaged or was cut short",
             path.string(), expected, file_size);
}

}  // namespace

std::string dtype_name(std::string_view stored) {
    std::string name(stored);
    std::ranges::transform(name, name.begin(), [](unsigned char c) { return std::tolower(c); });
    return name;
}

std::string dtype_name(at::ScalarType type) {
    const DtypeEntry* dtype = find_dtype(type);
    ETHER_ASSERT(dtype != nullptr);
    return dtype_name(dtype->name);
}

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path)
    : map_(std::make_shared<const MappedFile>(path)) {
    const std::span<const std::byte> file = map_->bytes();
    if (file.size() < kLengthBytes)
        fail(ErrorKind::format,
             "{}: not a safetensors file: it has {} bytes, fewer than the 8 of a header's length",
             path.string(), file.size());
    uint64_t header_bytes = 0;
    std::memcpy(&header_bytes, file.data(), kLengthBytes);
    if (header_bytes == 0 || header_bytes > kMaxHeaderBytes)
        fail(ErrorKind::format,
             "{}: not a safetensors file: its header's length would be {} bytes, expected 1 to {}",
             path.string(), header_bytes, kMaxHeaderBytes);
    if (header_bytes > file.size() - kLengthBytes)
        fail(ErrorKind::format, "{}: cut short: its header has {} bytes, the whole file {}", path.string(),
             header_bytes, file.size());
    const std::string_view text(reinterpret_cast<const char*>(file.data()) + kLengthBytes, header_bytes);
    const json header = parse_json(text, path.string() + " (header)");
    if (!header.is_object())
        fail(ErrorKind::format, "{}: header: expected an object, found {}", path.string(), describe(header));

    const uint64_t data_start = kLengthBytes + header_bytes;
    for (const auto& item : header.items()) {
        if (item.key() == "__metadata__")
            metadata_ = read_metadata(item.value(), path);
        else
            tensors_[item.key()] =
                read_entry(item.value(), data_start, file.size() - data_start, where(path, item.key()));
    }
    check_layout(tensors_, data_start, file.size(), path);
}

std::vector<std::string> SafetensorsFile::names() const {
    std::vector<std::string> names;
    for (const auto& [name, info] : tensors_) names.push_back(name);
    return names;
}

const TensorInfo& SafetensorsFile::info(std::string_view name) const {
    const auto found = tensors_.find(name);
    if (found == tensors_.end())
        fail(ErrorKind::model, "{}: has no tensor \"{}\"{}", path().string(), printable(name, 120),
             did_you_mean(name, names()));
    return found->second;
}

std::span<const std::byte> SafetensorsFile::bytes(std::string_view name) const {
    const TensorInfo& tensor = info(name);
    return map_->bytes().subspan(tensor.offset, tensor.bytes);
}

at::Tensor SafetensorsFile::tensor(std::string_view name) const {
    const TensorInfo& tensor = info(name);
    const DtypeEntry& dtype = *find_dtype(tensor.dtype);
    if (!dtype.type)
        fail(ErrorKind::model, "{}: its dtype {} cannot be read here; store it as F32, F16 or BF16",
             where(path(), name), tensor.dtype);
    const std::span<const std::byte> data = bytes(name);
    if (*dtype.type == at::kBool && std::ranges::any_of(data, [](std::byte b) { return b > std::byte{1}; }))
        fail(ErrorKind::format, "{}: a BOOL is neither 0 nor 1", where(path(), name));
    const bool aligned =
        tensor.offset % (static_cast<uint64_t>(dtype.bits) / 8) == 0;  // the map is page-aligned
    if (data.empty() || !aligned) {
        at::Tensor copy = at::empty(tensor.shape, *dtype.type);
        if (!data.empty()) std::memcpy(copy.mutable_data_ptr(), data.data(), data.size());
        return copy;
    }
    return at::from_blob(
        const_cast<std::byte*>(data.data()), tensor.shape, [map = map_](void*) {}, *dtype.type);
}

at::Tensor SafetensorsFile::weight(std::string_view name) const {
    const std::string& dtype = info(name).dtype;
    if (dtype != "F64" && dtype != "F32" && dtype != "F16" && dtype != "BF16")
        fail(ErrorKind::model,
             "{}: its dtype is {}, expected F32, F16, BF16 or F64; quantised weights are not read here",
             where(path(), name), dtype);
    return tensor(name);
}

void write_safetensors(AtomicFile& file, const NamedTensors& tensors,
                       const std::map<std::string, std::string>& metadata) {
    const auto& path = file.target();
    struct Item {
        const DtypeEntry* dtype;
        const std::string* name;
        const at::Tensor* tensor;
    };
    std::vector<Item> items;
    std::set<std::string_view> names;
    const auto check_text = [&](std::string_view text) {
        if (find_invalid_utf8(text) != std::string_view::npos)
            fail(ErrorKind::format, "{}: \"{}\" is not UTF-8 and cannot stand in a header", path.string(),
                 printable(text));
    };
    for (const auto& [name, tensor] : tensors) {
        ETHER_ASSERT(tensor.defined());
        check_text(name);
        if (!names.insert(name).second || name == "__metadata__")
            fail(ErrorKind::format, "{}: the name is taken", where(path, name));
        const DtypeEntry* dtype = find_dtype(tensor.scalar_type());
        if (dtype == nullptr)
            fail(ErrorKind::format, "{}: the format has no dtype for {}", where(path, name),
                 at::toString(tensor.scalar_type()));
        items.push_back({dtype, &name, &tensor});
    }
    std::ranges::sort(items, [](const Item& a, const Item& b) {
        return std::pair(a.dtype, std::string_view(*a.name)) < std::pair(b.dtype, std::string_view(*b.name));
    });

    // Put together by hand: the order of the entries is part of the format's reference layout.
    std::string header = "{";
    if (!metadata.empty()) {
        for (const auto& [key, value] : metadata) check_text(key), check_text(value);
        header += "\"__metadata__\":" + json(metadata).dump();
    }
    uint64_t offset = 0;
    for (const Item& item : items) {
        const uint64_t end = offset + item.tensor->nbytes();
        header += fmt::format(R"({}{}:{{"dtype":"{}","shape":[{}],"data_offsets":[{},{}]}})",
                              header.size() > 1 ? "," : "", json(*item.name).dump(), item.dtype->name,
                              fmt::join(item.tensor->sizes(), ","), offset, end);
        offset = end;
    }
    header += "}";
    header.resize((header.size() + 7) / 8 * 8, ' ');
    if (header.size() > kMaxHeaderBytes)
        fail(ErrorKind::format, "{}: the header would take {} bytes, more than the format's {}",
             path.string(), header.size(), kMaxHeaderBytes);

    const uint64_t header_bytes = header.size();
    file.write({reinterpret_cast<const char*>(&header_bytes), kLengthBytes});
    file.write(header);
    for (const Item& item : items) {
        const at::Tensor data = item.tensor->detach().cpu().contiguous();
        file.write({static_cast<const char*>(data.const_data_ptr()), data.nbytes()});
    }
}

void write_safetensors(const std::filesystem::path& path, const NamedTensors& tensors,
                       const std::map<std::string, std::string>& metadata) {
    AtomicFile file(path);
    write_safetensors(file, tensors, metadata);
    file.commit();
}

void check_written(const std::filesystem::path& path, const NamedTensors& tensors) {
    {
        const Descriptor written(path, O_RDONLY);
        ::posix_fadvise(written.get(), 0, 0, POSIX_FADV_DONTNEED);  // so that the disk is read, not the cache
    }
    const SafetensorsFile file(path);
    for (const auto& [name, tensor] : tensors) {
        const auto wanted = tensor.detach().cpu().contiguous(), found = file.tensor(name);
        if (found.scalar_type() != wanted.scalar_type() || found.sizes() != wanted.sizes() ||
            std::memcmp(found.const_data_ptr(), wanted.const_data_ptr(), wanted.nbytes()) != 0)
            fail(ErrorKind::file, "{}: reads back other values than were written; is the disk failing?",
                 where(path, name));
    }
}

}  // namespace ether::io
