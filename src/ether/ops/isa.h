// The program is compiled for AVX2 (x86-64-v3); loops that gain by it run as AVX-512 where the machine has
// that.
#pragma once

#include <utility>

namespace ether::ops {

#if defined(__x86_64__)
inline bool has_avx512() {
    static const bool found = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                              __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
    return found;
}

// flatten: everything that `loop` calls is compiled in here, for this instruction set.
template <typename Loop>
[[gnu::target("avx512f,avx512vl,avx512bw,avx512dq,prefer-vector-width=512"), gnu::flatten]] void run_avx512(
    Loop& loop) {
    loop();
}
#endif

// Whether a 64-byte vector is one register.
inline bool has_wide_registers() {
#if defined(__x86_64__)
    return has_avx512();
#else
    return false;
#endif
}

// Calls loop() in the calling thread, compiled twice.
template <typename Loop>
void for_best_isa(Loop&& loop) {
#if defined(__x86_64__)
    if (has_avx512()) return run_avx512(loop);
#endif
    loop();
}

}  // namespace ether::ops
