// Kernels of a GPU, compiled when they are first needed by the compiler that libtorch's wheel brings along
// (NVRTC): a build needs no CUDA, and each kernel knows its sizes.
#pragma once

#include <c10/core/Device.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace ether::ops {

// What runs kernels on one device.
class Kernels {
  public:
    virtual ~Kernels() = default;

    struct Kernel {
        const void* function = nullptr;
        int blocks = 1;  // that a processor holds at a time
        int64_t shared_bytes = 0;
        int threads = 0;  // of a block
    };
    // What tells one kernel from another.
    enum Kind : int64_t { rows_forward, rows_backward, column_sums, cross_entropy, attention };
    using Key = std::vector<int64_t>;  // a Kind, then whatever its source depends on

    // The kernel of this key, compiled when it is first asked for. Forward passes and autograd's threads come
    // here side by side.
    Kernel compiled(const Key& key, int threads, int64_t shared_bytes,
                    const std::function<std::string()>& source);
    // source: a program of CUDA C++ with one function, `extern "C" void kernel(Arguments)`, Arguments being a
    // struct of 64-bit words. shared_bytes: of its dynamic shared memory. A program that does not compile is
    // an error.
    virtual Kernel compile(const std::string& source, int threads, int64_t shared_bytes) = 0;
    // Runs in the order of libtorch's own work; does not wait.
    virtual void launch(const Kernel& kernel, int64_t blocks, const std::vector<uint64_t>& words) = 0;
    virtual int processors() const = 0;
    virtual int64_t shared_bytes() const = 0;  // that a block may have
    virtual int64_t registers() const = 0;     // of 32 bits, of a processor

  private:
    std::mutex mutex_;
    std::map<Key, Kernel> known_;
};

// Those of a device; null where its operations are composed: the CPU, a GPU without what compiles
// (missing_compiler() says what), and everything where the environment variable ETHER_COMPOSED is set.
Kernels* kernels_of(c10::Device device);
std::string missing_compiler();

// For tests: runs the kernels of tensors on the CPU; null: nobody again. Returns who did.
std::unique_ptr<Kernels> run_cpu_kernels_by(std::unique_ptr<Kernels> kernels);

// NVRTC's machine code for a processor, "sm_90" say; needs no GPU. Throws what the compiler says.
std::string compile_cuda(const std::string& source, const std::string& architecture);

}  // namespace ether::ops
