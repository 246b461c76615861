// The program is compiled for AVX2 (x86-64-v3); loops that gain by it run as AVX-512 where the machine has
// that.
#pragma once

#include <type_traits>
#include <utility>

namespace ether::ops {

// An instruction set, by its vectors' size in bytes.
template <int bytes>
struct Isa {
    static constexpr int kBytes = bytes;
};

#if defined(__x86_64__)
using BaseIsa = Isa<32>;

inline bool has_avx512() {
    static const bool found = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                              __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
    return found;
}
#else
using BaseIsa = Isa<16>;
#endif

// A loop over vectors wants to know the instruction set, one that the compiler vectorises does not.
template <typename Loop, typename ThisIsa>
[[gnu::always_inline]] inline void run_on(Loop& loop, ThisIsa isa) {
    if constexpr (std::is_invocable_v<Loop&, ThisIsa>)
        loop(isa);
    else
        loop();
}

// flatten: everything that `loop` calls is compiled in here, for this instruction set.
template <typename Loop>
[[gnu::flatten]] void run_base(Loop& loop) {
    run_on(loop, BaseIsa());
}
#if defined(__x86_64__)
template <typename Loop>
[[gnu::target("avx512f,avx512vl,avx512bw,avx512dq,prefer-vector-width=512"), gnu::flatten]] void run_avx512(
    Loop& loop) {
    run_on(loop, Isa<64>());
}
#endif

// Calls loop(isa), or loop() where it takes nothing, in the calling thread, compiled twice.
template <typename Loop>
void for_best_isa(Loop&& loop) {
#if defined(__x86_64__)
    if (has_avx512()) return run_avx512(loop);
#endif
    run_base(loop);
}

}  // namespace ether::ops
