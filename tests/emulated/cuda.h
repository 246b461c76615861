// Enough of CUDA C++ for device code of ours to run on the CPU, as a shared library with one function, run():
// each thread of a block is a coroutine, and they take turns at barriers. Comes before a kernel's source.
#include <ucontext.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#define ETHER_EMULATED
#define __device__
#define __global__
#define __shared__ static
#define __launch_bounds__(threads, blocks)

namespace emulated {

struct Size {
    unsigned x;
};
struct Barrier {
    int arrived = 0, passed = 0;
};
struct Thread {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    bool done = false;
};

inline ucontext_t scheduler;
inline std::vector<Thread> threads;
inline std::vector<Barrier> warps;
inline std::vector<double> lanes, dynamic;
inline Barrier block;

}  // namespace emulated

inline emulated::Size threadIdx, blockIdx, gridDim;
#define dynamic_shared() ((char*)emulated::dynamic.data())

namespace emulated {

inline void wait(Barrier& barrier, int size) {
    const unsigned own = threadIdx.x;
    const int turn = barrier.passed;
    if (++barrier.arrived == size) {
        barrier.arrived = 0;
        ++barrier.passed;
    }
    while (barrier.passed == turn) {
        swapcontext(&threads[own].context, &scheduler);
        threadIdx.x = own;
    }
}

}  // namespace emulated

inline void __syncthreads() { emulated::wait(emulated::block, (int)emulated::threads.size()); }
template <typename Value>
Value __shfl_xor_sync(unsigned, Value value, int mask) {
    auto& warp = emulated::warps[threadIdx.x / 32];
    emulated::lanes[threadIdx.x] = (double)value;
    emulated::wait(warp, 32);
    const auto other = (Value)emulated::lanes[threadIdx.x ^ (unsigned)mask];
    emulated::wait(warp, 32);
    return other;
}
inline float __uint_as_float(unsigned bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
inline unsigned __float_as_uint(float value) {
    unsigned bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}
inline double __longlong_as_double(long long bits) {
    double value;
    std::memcpy(&value, &bits, 8);
    return value;
}
struct uint2 {
    unsigned x, y;
};
struct uint4 {
    unsigned x, y, z, w;
};
template <typename Value>
Value __ldg(const Value* from) {
    return *from;
}
inline float __expf(float x) { return std::exp(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float rsqrt(float x) { return 1 / std::sqrt(x); }
inline double rsqrt(double x) { return 1 / std::sqrt(x); }
using std::erf;
using std::exp;
using std::log;
inline float max(float x, float y) { return x > y ? x : y; }
inline double max(double x, double y) { return x > y ? x : y; }
inline int max(int x, int y) { return x > y ? x : y; }
inline int min(int x, int y) { return x < y ? x : y; }

struct Arguments;
extern "C" void kernel(Arguments);
namespace emulated {
void call(const void* words);  // kernel(), told its arguments, behind its source
inline const void* arguments;
inline void body(unsigned own) {
    threadIdx.x = own;
    call(arguments);
    threads[own].done = true;
    setcontext(&scheduler);
}
}  // namespace emulated

extern "C" inline __attribute__((used)) void run(const void* words, int blocks, int size, long shared_bytes) {
    using namespace emulated;
    constexpr size_t kStack = 256 << 10;
    arguments = words;
    gridDim.x = (unsigned)blocks;
    dynamic.assign((size_t)shared_bytes / sizeof(double) + 1, NAN);
    threads.resize((size_t)size), warps.assign((size_t)size / 32, {}), lanes.resize((size_t)size);
    for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) {
        block = {};
        for (unsigned i = 0; i < threads.size(); ++i) {
            auto& thread = threads[i];
            if (!thread.stack) thread.stack = std::make_unique<char[]>(kStack);
            thread.done = false;
            getcontext(&thread.context);
            thread.context.uc_stack.ss_sp = thread.stack.get();
            thread.context.uc_stack.ss_size = kStack;
            makecontext(&thread.context, reinterpret_cast<void (*)()>(body), 1, i);
        }
        for (size_t left = threads.size(); left > 0;)
            for (unsigned i = 0; i < threads.size(); ++i) {
                if (threads[i].done) continue;
                threadIdx.x = i;
                swapcontext(&scheduler, &threads[i].context);
                left -= threads[i].done;
            }
    }
}
