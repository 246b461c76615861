// Runs the kernels of GPUs on the CPU where ETHER_EMULATED is set, so that every test of a room tests them:
// the compiler that built the tests compiles their source behind cuda.h.
#include "ether/ops/gpu/launcher.h"

#include <dlfcn.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

namespace ether::ops {
namespace {

class EmulatedKernels : public Kernels {
  public:
    EmulatedKernels() {
        std::string name = std::filesystem::temp_directory_path() / "emulated.XXXXXX";
        folder_ = mkdtemp(name.data());
    }
    ~EmulatedKernels() override { std::filesystem::remove_all(folder_); }

    Kernel compile(const std::string& source, int, int64_t shared_bytes) override {
        const auto stem = folder_ / std::to_string(count_++);
        std::ofstream(stem.string() + ".cpp") << "#include \"" ETHER_EMULATED_CUDA "\"\n"
                                              << source
                                              << "void emulated::call(const void* words) {\n"
                                                 "    kernel(*static_cast<const Arguments*>(words));\n}\n";
        const auto command =
            std::string(ETHER_COMPILER " -std=c++20 -O1 -w -fno-gnu-unique -shared -fPIC -o ") +
            stem.string() + ".so " + stem.string() + ".cpp";
        if (std::system(command.c_str()) != 0)
            throw std::runtime_error("a kernel does not compile: " + command);
        void* library = dlopen((stem.string() + ".so").c_str(), RTLD_NOW | RTLD_LOCAL);
        if (!library) throw std::runtime_error(dlerror());
        return {dlsym(library, "run"), 2, shared_bytes};
    }
    void launch(const Kernel& kernel, int64_t blocks, const std::vector<uint64_t>& words) override {
        reinterpret_cast<void (*)(const void*, int, int, int64_t)>(const_cast<void*>(kernel.function))(
            words.data(), static_cast<int>(blocks), kernel.threads, kernel.shared_bytes);
    }
    int processors() const override { return 2; }
    // So few that some graphs' rows and sums find room in shared memory, and some do not.
    int64_t shared_bytes() const override { return 24 << 10; }
    int64_t registers() const override { return 12 << 10; }

  private:
    std::filesystem::path folder_;
    int count_ = 0;
};

class Emulation : public testing::Environment {
  public:
    void SetUp() override { run_cpu_kernels_by(std::make_unique<EmulatedKernels>()); }
    void TearDown() override { run_cpu_kernels_by(nullptr); }
};

[[maybe_unused]] const auto* const emulation =
    std::getenv("ETHER_EMULATED") ? testing::AddGlobalTestEnvironment(new Emulation) : nullptr;

}  // namespace
}  // namespace ether::ops
