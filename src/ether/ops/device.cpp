#include "ether/ops/device.h"

#include <ATen/Context.h>
#include <ATen/DeviceAccelerator.h>
#include <ATen/Functions.h>
#include <dlfcn.h>

#include <charconv>
#include <optional>
#include <string_view>

#include "ether/core/error.h"
#include "ether/core/memory.h"

namespace ether::ops {
namespace {

// Why there is no such device; nothing: it works. The first call, before anything else asks libtorch for
// CUDA.
std::optional<std::string> missing(at::Device device) {
    if (!dlopen("libcuda.so.1", RTLD_LAZY)) return "this machine has no NVIDIA driver";
    if (!dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_GLOBAL))
        return fmt::format(
            "libtorch's CUDA part cannot be opened ({}); set ETHER_TORCH_DIR to a torch that "
            "Python can use and build again",
            dlerror());
    try {
        at::globalContext().lazyInitDevice(at::kCUDA);
        const int count = at::accelerator::deviceCount();
        if (device.index() >= count)
            return fmt::format("the machine has {} GPU{}, counted from 0", count, count == 1 ? "" : "s");
        at::ones({1}, at::TensorOptions(device)).add(1).cpu();  // driver, memory and architecture in one
    } catch (const c10::Error& error) {
        const std::string_view what = error.what_without_backtrace();
        return std::string(what.substr(0, what.find('\n')));
    }
    return std::nullopt;
}

at::Device parsed(const std::string& name) {
    if (name == "cpu") return at::kCPU;
    if (name == "cuda" || name == "auto") return {at::kCUDA, 0};
    constexpr std::string_view kPrefix = "cuda:";
    int8_t index = -1;
    if (name.starts_with(kPrefix)) {
        const char* end = name.data() + name.size();
        const auto [stop, error] = std::from_chars(name.data() + kPrefix.size(), end, index);
        if (error == std::errc() && stop == end && index >= 0) return {at::kCUDA, index};
    }
    fail(ErrorKind::usage, "--device: \"{}\" is not known, expected auto, cpu, cuda or cuda:1", name);
}

}  // namespace

at::Device device_named(const std::string& name) {
    const auto device = parsed(name);
    if (device.is_cpu()) return device;
    const auto reason = missing(device);
    if (!reason) return device;
    if (name == "auto") return at::kCPU;
    fail(ErrorKind::usage, "--device {}: {}; --device cpu runs without", name, *reason);
}

void wait_for(at::Device device) {
    if (!device.is_cpu()) at::accelerator::synchronizeDevice(device.index());
}

int64_t peak_memory(at::Device device) {
    return device.is_cpu() ? 0 : at::accelerator::getDeviceStats(device.index()).allocated_bytes[0].peak;
}

int64_t free_memory(at::Device device) {
    return device.is_cpu() ? available_memory()
                           : static_cast<int64_t>(at::accelerator::getMemoryInfo(device.index()).first);
}

}  // namespace ether::ops
