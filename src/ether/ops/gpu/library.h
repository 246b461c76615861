// A shared library that is opened while the program runs.
#pragma once

#include <dlfcn.h>

#include <string>

#include "ether/core/error.h"

namespace ether::ops {

// CUDA's runtime, of the version that libtorch was built with.
inline constexpr const char* kCudaRuntime = "libcudart.so.13";

// Opens a shared library once; each function is looked up by its name.
class Library {
  public:
    explicit Library(const char* name, int flags = 0) : handle_(dlopen(name, RTLD_LAZY | flags)) {
        if (!handle_) missing_ = dlerror();
    }

    // Becomes the pointer that it initialises; null where the library or the function is missing.
    struct Symbol {
        void* address;
        template <typename Function>
        operator Function*() const {
            return reinterpret_cast<Function*>(address);
        }
    };
    Symbol operator[](const char* name) {
        void* found = handle_ ? dlsym(handle_, name) : nullptr;
        if (handle_ && !found) missing_ = fmt::format("{} is not in it", name);
        return {found};
    }
    const std::string& missing() const { return missing_; }

  private:
    void* handle_;
    std::string missing_;
};

}  // namespace ether::ops
