#include "ether/io/pickle.h"

#include <ATen/core/ivalue.h>
#include <caffe2/serialize/inline_container.h>
#include <torch/csrc/jit/serialization/import_read.h>

#include <algorithm>

#include "ether/core/error.h"
#include "ether/core/shell.h"
#include "ether/io/file.h"

namespace ether::io {
namespace {

constexpr std::string_view kZipMagic = "PK\x03\x04";

// What libtorch's reader asks for, from our map of the file.
class MapReader : public caffe2::serialize::ReadAdapterInterface {
  public:
    explicit MapReader(const MappedFile& map) : bytes_(map.bytes()) {}

    size_t size() const override { return bytes_.size(); }
    size_t read(uint64_t position, void* buffer, size_t n, const char*) const override {
        if (position >= bytes_.size()) return 0;
        const auto part = bytes_.subspan(position, std::min(n, bytes_.size() - position));
        std::copy(part.begin(), part.end(), static_cast<std::byte*>(buffer));
        return part.size();
    }

  private:
    std::span<const std::byte> bytes_;
};

constexpr int kDeepest = 8;  // dictionaries within each other, below which nobody keeps weights

void add_tensors(const c10::IValue& value, const std::string& prefix, NamedTensors& tensors, int depth = 0) {
    for (const auto& entry : value.toGenericDict()) {
        if (!entry.key().isString()) continue;
        const auto name = prefix + entry.key().toStringRef();
        if (entry.value().isTensor())
            tensors.emplace_back(name, entry.value().toTensor().detach().contiguous());
        else if (entry.value().isGenericDict() && depth < kDeepest)
            add_tensors(entry.value(), name + ".", tensors, depth + 1);
    }
}

}  // namespace

NamedTensors read_pickled_tensors(const std::filesystem::path& path) {
    const MappedFile map(path);
    const auto bytes = map.bytes();
    const std::string_view begin(reinterpret_cast<const char*>(bytes.data()),
                                 std::min(bytes.size(), kZipMagic.size()));
    if (begin != kZipMagic)
        fail(ErrorKind::format,
             "{}: expected a file of torch.save (a zip archive, PyTorch 1.6 or later), found other content",
             path.string());
    NamedTensors tensors;
    try {
        caffe2::serialize::PyTorchStreamReader reader(std::make_shared<MapReader>(map));
        const auto content = torch::jit::readArchiveAndTensors("data", "", "", std::nullopt, std::nullopt,
                                                               at::Device(at::kCPU), reader);
        if (!content.isGenericDict())
            fail(ErrorKind::format, "{}: expected a dictionary of tensors, found another object",
                 path.string());
        add_tensors(content, "", tensors);
    } catch (const c10::Error&) {  // its text is for libtorch's developers
        fail(ErrorKind::format,
             "{0}: damaged, or holds other objects than tensors in plain dictionaries; where torch reads it, "
             "python -c \"import sys, torch; f = sys.argv[1]; torch.save(dict(torch.load(f, "
             "map_location='cpu', weights_only=True)), f)\" {1} writes it anew",
             path.string(), shell_word(path.string()));
    }
    return tensors;
}

}  // namespace ether::io
