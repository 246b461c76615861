#include "ether/ops/gpu/launcher.h"

#include <ATen/DeviceAccelerator.h>
#include <c10/core/DeviceGuard.h>

#include <cstdlib>
#include <deque>
#include <map>
#include <mutex>
#include <utility>

#include "ether/core/error.h"
#include "ether/ops/gpu/compiled_cache.h"
#include "ether/ops/gpu/library.h"

namespace ether::ops {
namespace {

// The part of NVRTC's interface (nvrtc.h) that is used here; statuses are 0 for success.
struct Nvrtc {
    using Program = void*;

    Library builtins{"libnvrtc-builtins.so.13.0"};  // which it would look for in the system's folders
    Library library{"libnvrtc.so.13"};
    int (*create)(Program*, const char*, const char*, int, const char* const*,
                  const char* const*) = library["nvrtcCreateProgram"];
    int (*destroy)(Program*) = library["nvrtcDestroyProgram"];
    int (*compile)(Program, int, const char* const*) = library["nvrtcCompileProgram"];
    int (*version)(int*, int*) = library["nvrtcVersion"];
    int (*log_size)(Program, size_t*) = library["nvrtcGetProgramLogSize"];
    int (*log)(Program, char*) = library["nvrtcGetProgramLog"];
    int (*code_size)(Program, size_t*) = library["nvrtcGetCUBINSize"];
    int (*code)(Program, char*) = library["nvrtcGetCUBIN"];
};
Nvrtc& nvrtc() {
    static Nvrtc nvrtc;
    return nvrtc;
}

constexpr const char* kOptions[] = {"--std=c++17", "--no-source-include", "--generate-line-info",
                                    "--diag-suppress=177"};

std::string compiler_and_options() {
    int major = 0, minor = 0;
    nvrtc().version(&major, &minor);
    return fmt::format("NVRTC {}.{} {} ", major, minor, fmt::join(kOptions, " "));
}

// The part of the CUDA runtime (cuda_runtime_api.h) that is used here. libtorch has opened it.
struct Runtime {
    struct Size {
        unsigned x, y, z;
    };
    Library library{kCudaRuntime, RTLD_NOLOAD};
    int (*attribute)(int*, int, int) = library["cudaDeviceGetAttribute"];
    const char* (*error_string)(int) = library["cudaGetErrorString"];
    int (*load)(void**, const void*, const int*, void**, unsigned, const int*, void**,
                unsigned) = library["cudaLibraryLoadData"];
    int (*kernel)(const void**, void*, const char*) = library["cudaLibraryGetKernel"];
    int (*set)(const void*, int, int) = library["cudaFuncSetAttribute"];
    int (*occupancy)(int*, const void*, int,
                     size_t) = library["cudaOccupancyMaxActiveBlocksPerMultiprocessor"];
    int (*launch)(const void*, Size, Size, void**, size_t, void*) = library["cudaLaunchKernel"];

    void check(int status, const char* what) const {
        if (status != 0) fail(ErrorKind::numeric, "{} failed on the GPU: {}", what, error_string(status));
    }
};
Runtime& runtime() {
    static Runtime runtime;
    return runtime;
}
constexpr int kProcessors = 16, kMajor = 75, kMinor = 76, kRegisters = 82,
              kSharedBytes = 97;        // cudaDeviceAttr
constexpr int kDynamicSharedBytes = 8;  // cudaFuncAttribute

class CudaKernels : public Kernels {
  public:
    explicit CudaKernels(c10::Device device) : device_(device) {
        auto ask = [&](int attribute) {
            int value = 0;
            runtime().check(runtime().attribute(&value, attribute, device.index()),
                            "asking for what the GPU has");
            return value;
        };
        processors_ = ask(kProcessors);
        shared_bytes_ = ask(kSharedBytes);
        registers_ = ask(kRegisters);
        architecture_ = fmt::format("sm_{}{}", ask(kMajor), ask(kMinor));
    }

    Kernel compile(const std::string& source, int threads, int64_t shared_bytes) override {
        const auto& code =
            code_.emplace_back(cached_code(compiler_and_options() + architecture_ + source,
                                           [&] { return compile_cuda(source, architecture_); }));
        const c10::DeviceGuard guard(device_);
        void* loaded = nullptr;
        runtime().check(runtime().load(&loaded, code.data(), nullptr, nullptr, 0, nullptr, nullptr, 0),
                        "loading a kernel");
        Kernel kernel;
        runtime().check(runtime().kernel(&kernel.function, loaded, "kernel"), "finding a kernel");
        kernel.shared_bytes = shared_bytes;
        const auto dynamic = static_cast<int>(shared_bytes);
        runtime().check(runtime().set(kernel.function, kDynamicSharedBytes, dynamic),
                        "giving a kernel its memory");
        runtime().check(
            runtime().occupancy(&kernel.blocks, kernel.function, threads, static_cast<size_t>(shared_bytes)),
            "measuring a kernel");
        if (kernel.blocks < 1)
            fail(ErrorKind::numeric, "a kernel needs more registers than a processor of the GPU has");
        return kernel;
    }

    void launch(const Kernel& kernel, int64_t blocks, const std::vector<uint64_t>& words) override {
        const c10::DeviceGuard guard(device_);
        void* arguments[] = {const_cast<uint64_t*>(words.data())};
        void* stream = at::accelerator::getCurrentStream(device_.index()).native_handle();
        runtime().check(runtime().launch(kernel.function, {static_cast<unsigned>(blocks), 1, 1},
                                         {static_cast<unsigned>(kernel.threads), 1, 1}, arguments,
                                         static_cast<size_t>(kernel.shared_bytes), stream),
                        "starting a kernel");
    }

    int processors() const override { return processors_; }
    int64_t shared_bytes() const override { return shared_bytes_; }
    int64_t registers() const override { return registers_; }

  private:
    c10::Device device_;
    int processors_ = 0, shared_bytes_ = 0, registers_ = 0;
    std::string architecture_;
    std::deque<std::string> code_;  // the driver reads it later
};

std::unique_ptr<Kernels>& cpu_kernels() {
    static std::unique_ptr<Kernels> kernels;
    return kernels;
}

}  // namespace

Kernels::Kernel Kernels::compiled(const Key& key, int threads, int64_t shared_bytes,
                                  const std::function<std::string()>& source) {
    const std::lock_guard lock(mutex_);
    const auto found = known_.find(key);
    if (found != known_.end()) return found->second;
    auto kernel = compile(source(), threads, shared_bytes);
    kernel.threads = threads;
    return known_[key] = kernel;
}

std::string compile_cuda(const std::string& source, const std::string& architecture) {
    auto& compiler = nvrtc();
    auto check = [](int status, const char* what) {
        if (status != 0) fail(ErrorKind::numeric, "{} failed: NVRTC's error {}", what, status);
    };
    Nvrtc::Program program = nullptr;
    check(compiler.create(&program, source.c_str(), "kernel.cu", 0, nullptr, nullptr), "making a program");
    const std::string target = "--gpu-architecture=" + architecture;
    std::vector<const char*> options(std::begin(kOptions), std::end(kOptions));
    options.push_back(target.c_str());
    const int status = compiler.compile(program, static_cast<int>(options.size()), options.data());
    size_t size = 0;
    if (status != 0) {
        check(compiler.log_size(program, &size), "compiling");
        std::string log(size, '\0');
        check(compiler.log(program, log.data()), "compiling");
        compiler.destroy(&program);
        fail(ErrorKind::numeric,
             "a kernel does not compile for {}; with the environment variable ETHER_COMPOSED=1 none are "
             "needed, and steps take several times as long: {}",
             architecture, log.c_str());
    }
    check(compiler.code_size(program, &size), "compiling");
    std::string code(size, '\0');
    check(compiler.code(program, code.data()), "compiling");
    compiler.destroy(&program);
    return code;
}

std::string missing_compiler() {
    for (const auto* library : {&nvrtc().builtins, &nvrtc().library, &runtime().library})
        if (!library->missing().empty()) return library->missing();
    return {};
}

Kernels* kernels_of(c10::Device device) {
    if (device.is_cpu()) return cpu_kernels().get();
    static const bool composed = std::getenv("ETHER_COMPOSED") != nullptr || !missing_compiler().empty();
    if (composed || !device.is_cuda()) return nullptr;
    static std::mutex mutex;
    static std::map<int, std::unique_ptr<Kernels>> of_device;
    const std::lock_guard lock(mutex);
    auto& kernels = of_device[device.index()];
    if (!kernels) kernels = std::make_unique<CudaKernels>(device);
    return kernels.get();
}

std::unique_ptr<Kernels> run_cpu_kernels_by(std::unique_ptr<Kernels> kernels) {
    return std::exchange(cpu_kernels(), std::move(kernels));
}

}  // namespace ether::ops
