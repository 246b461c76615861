#include "ether/ops/gpu/graph.h"

#include <ATen/DeviceAccelerator.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <cstdlib>
#include <map>
#include <mutex>
#include <string_view>

#include "ether/core/error.h"
#include "ether/ops/device.h"
#include "ether/ops/gpu/library.h"

namespace ether::ops {
namespace {

bool cpu_work_allowed = false;

// The part of the CUDA runtime (cuda_runtime_api.h) that is used here. libtorch has opened it.
struct Runtime {
    Library library{kCudaRuntime, RTLD_NOLOAD};
    int (*begin)(void*, int) = library["cudaStreamBeginCapture"];
    int (*end)(void*, void**) = library["cudaStreamEndCapture"];
    int (*instantiate)(void**, void*, unsigned long long) = library["cudaGraphInstantiate"];
    int (*launch)(void*, void*) = library["cudaGraphLaunch"];
    int (*destroy_graph)(void*) = library["cudaGraphDestroy"];
    int (*destroy_executable)(void*) = library["cudaGraphExecDestroy"];
    int (*forget_error)() = library["cudaGetLastError"];
    const char* (*error_string)(int) = library["cudaGetErrorString"];
};
const Runtime& runtime() {
    static const Runtime runtime;
    return runtime;
}
constexpr int kRelaxed = 2;  // cudaStreamCaptureMode: libtorch may take memory meanwhile

// libtorch's allocator gives memory that was freed on a stream to that stream's work alone: what graphs have
// used is then theirs, as nothing but recording happens there.
c10::Stream recording_stream(c10::Device device) {
    static std::mutex mutex;
    static std::map<int, c10::Stream> streams;
    const std::lock_guard lock(mutex);
    const auto found = streams.find(device.index());
    if (found != streams.end()) return found->second;
    const c10::impl::VirtualGuardImpl guard(device.type());
    return streams.emplace(device.index(), guard.getNewStream(device)).first->second;
}

// Unless it had to return memory to the device.
int64_t memory_returns(c10::Device device) {
    return at::accelerator::getDeviceStats(device.index()).num_device_free;
}

class CudaGraph : public DeviceGraph {
  public:
    // returns: memory_returns() before the recording.
    CudaGraph(c10::Device device, void* executable, int64_t returns)
        : device_(device), executable_(executable), memory_returns_(returns) {}
    ~CudaGraph() override {
        try {
            wait_for(device_);  // it may be running
        } catch (const c10::Error&) {
            // Whoever waits for the device next is told.
        }
        runtime().destroy_executable(executable_);
    }
    CudaGraph(const CudaGraph&) = delete;
    CudaGraph& operator=(const CudaGraph&) = delete;

    void replay() override {
        const c10::DeviceGuard guard(device_);
        const int status =
            runtime().launch(executable_, at::accelerator::getCurrentStream(device_.index()).native_handle());
        if (status != 0)
            fail(ErrorKind::numeric, "starting a graph of kernels failed on the GPU: {}",
                 runtime().error_string(status));
    }
    bool intact() const override { return memory_returns(device_) == memory_returns_; }

  private:
    c10::Device device_;
    void* executable_;
    int64_t memory_returns_;
};

class RepeatedWork : public DeviceGraph {
  public:
    explicit RepeatedWork(std::function<void()> work) : work_(std::move(work)) {}
    void replay() override { work_(); }
    bool intact() const override { return true; }

  private:
    std::function<void()> work_;
};

}  // namespace

bool can_record(c10::Device device) {
    if (device.is_cpu()) return cpu_work_allowed;
    const char* wish = std::getenv("ETHER_GRAPHS");
    // Other ways of libtorch's to take memory give it to others, or make it a part of the graph.
    for (const char* way :
         {"PYTORCH_NO_CUDA_MEMORY_CACHING", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"})
        if (std::getenv(way)) return false;
    return device.is_cuda() && (!wish || std::string_view(wish) != "0") &&
           runtime().library.missing().empty();
}

std::unique_ptr<DeviceGraph> record(c10::Device device, const std::function<void()>& work) {
    if (device.is_cpu()) {
        work();
        return std::make_unique<RepeatedWork>(work);
    }
    const auto& cuda = runtime();
    const c10::DeviceGuard on_device(device);
    wait_for(device);
    const auto stream = recording_stream(device);
    const c10::StreamGuard on_stream(stream);
    const int64_t returns = memory_returns(device);
    if (cuda.begin(stream.native_handle(), kRelaxed) != 0) {
        cuda.forget_error();
        return nullptr;
    }
    // Ends the recording, whatever comes.
    auto end = [&] {
        void* graph = nullptr;
        if (cuda.end(stream.native_handle(), &graph) == 0) return graph;
        cuda.forget_error();
        return static_cast<void*>(nullptr);
    };
    try {
        work();
    } catch (const c10::Error&) {  // of an operation that cannot be recorded
        if (void* graph = end()) cuda.destroy_graph(graph);
        cuda.forget_error();
        return nullptr;
    } catch (...) {
        if (void* graph = end()) cuda.destroy_graph(graph);
        throw;
    }
    void* const graph = end();
    if (!graph) return nullptr;
    void* executable = nullptr;
    const int status = cuda.instantiate(&executable, graph, 0);
    cuda.destroy_graph(graph);
    if (status == 0) return std::make_unique<CudaGraph>(device, executable, returns);
    cuda.forget_error();
    return nullptr;
}

void record_cpu_work(bool allowed) { cpu_work_allowed = allowed; }

}  // namespace ether::ops
