#include "ether/core/memory.h"

#include <malloc.h>

#include <cstddef>

// jemalloc's control function, where the program is linked with it.
extern "C" int mallctl(const char* name, void* old_value, size_t* old_size, void* new_value, size_t new_size)
    __attribute__((weak));

namespace ether {

void return_freed_memory() {
    constexpr auto kAllArenas = "arena.4096.purge";  // MALLCTL_ARENAS_ALL
    if (mallctl)
        mallctl(kAllArenas, nullptr, nullptr, nullptr, 0);
    else
        ::malloc_trim(0);
}

}  // namespace ether
