// The reader of safetensors files; every byte that it hands out is read, and what it took is written and read
// again.
#include "ether/io/safetensors.h"

#include <algorithm>

#include "fuzz.h"

namespace ether {
namespace {

uint64_t sum(std::span<const std::byte> bytes) {
    uint64_t total = 0;
    for (const std::byte byte : bytes) total += static_cast<uint64_t>(byte);
    return total;
}

void read(const fuzz::Folder& folder, std::string_view bytes) {
    const io::SafetensorsFile file(folder.write("a.safetensors", bytes));
    io::NamedTensors tensors;
    volatile uint64_t seen = 0;
    for (const auto& name : file.names()) {
        seen = seen + sum(file.bytes(name));
        tensors.emplace_back(name, file.tensor(name));
    }
    io::write_safetensors(folder.path() / "b.safetensors", tensors, file.metadata());
    const io::SafetensorsFile again(folder.path() / "b.safetensors");
    ETHER_ASSERT(again.names() == file.names() && again.metadata() == file.metadata());
    for (const auto& name : file.names())
        ETHER_ASSERT(std::ranges::equal(again.bytes(name), file.bytes(name)));
}

}  // namespace
}  // namespace ether

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    static const ether::fuzz::Folder folder;
    return ether::fuzz::expect_an_answer([&] { ether::read(folder, ether::fuzz::view(data, size)); });
}
