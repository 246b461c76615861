#include "ether/core/memory.h"

#include <malloc.h>
#include <sys/resource.h>

#include <algorithm>
#include <cstddef>
#include <fstream>
#include <limits>
#include <string>

// jemalloc's control function, where the program is linked with it.
extern "C" int mallctl(const char* name, void* old_value, size_t* old_size, void* new_value, size_t new_size)
    __attribute__((weak));

namespace ether {
namespace {

// A "Name:   123 kB" line of a /proc file, in bytes; -1 if absent.
int64_t proc_value(const char* path, const std::string& name) {
    std::ifstream file(path);
    std::string line;
    while (std::getline(file, line))
        if (line.starts_with(name + ":")) return std::stoll(line.substr(name.size() + 1)) * 1024;
    return -1;
}

// The first number of a file; -1 where there is none ("max", no file).
int64_t number_in(const std::string& path) {
    std::ifstream file(path);
    int64_t value = -1;
    return file >> value ? value : -1;
}

// What the control groups that hold this process leave it (version 2: each level has its own limit). Page
// cache that can be dropped is not counted as used.
int64_t available_in_groups() {
    int64_t available = std::numeric_limits<int64_t>::max();
    std::ifstream groups("/proc/self/cgroup");
    for (std::string line; std::getline(groups, line);) {
        if (!line.starts_with("0::")) continue;
        for (std::string path = line.substr(3);; path.resize(path.rfind('/'))) {
            const std::string folder = "/sys/fs/cgroup" + path;
            const int64_t limit = number_in(folder + "/memory.max"),
                          used = number_in(folder + "/memory.current");
            if (limit >= 0 && used >= 0) {
                int64_t cache = 0;
                std::ifstream statistics(folder + "/memory.stat");
                std::string name;
                for (int64_t value = 0; statistics >> name >> value;)
                    if (name == "inactive_file") cache = value;
                available = std::min(available, std::max<int64_t>(0, limit - used + cache));
            }
            if (path.find('/') == std::string::npos) break;
        }
    }
    return available;
}

}  // namespace

int64_t available_memory() {
    int64_t available = proc_value("/proc/meminfo", "MemAvailable");
    if (available < 0) available = std::numeric_limits<int64_t>::max();
    return std::min({available, available_in_groups(), available_address_space()});
}

int64_t available_address_space() {
    rlimit limit{};
    if (getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY)
        return std::numeric_limits<int64_t>::max();
    const int64_t used = std::max<int64_t>(0, proc_value("/proc/self/status", "VmSize"));
    return std::max<int64_t>(0, static_cast<int64_t>(limit.rlim_cur) - used);
}

void return_freed_memory() {
    constexpr auto kAllArenas = "arena.4096.purge";  // MALLCTL_ARENAS_ALL
    if (mallctl)
        mallctl(kAllArenas, nullptr, nullptr, nullptr, 0);
    else
        ::malloc_trim(0);
}

}  // namespace ether
