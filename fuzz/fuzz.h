// What fuzz targets share: an answer to bytes is success or an ether::Error of one line; whatever else leaves
// a reader is a finding. Targets run in the repository's root and keep their files in memory.
#pragma once

#include <stdlib.h>

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>

#include "ether/core/error.h"

namespace ether::fuzz {

inline const std::filesystem::path kModels = "tests/fixtures/models";

template <typename Read>
int expect_an_answer(Read&& read) {
    try {
        read();
    } catch (const Error& error) {
        const std::string_view message = error.what();
        if (message.empty() || message.find('\n') != message.npos) {
            std::fprintf(stderr, "not one line: %s\n", error.what());
            abort();
        }
    }
    return 0;
}

inline std::string_view view(const uint8_t* data, size_t size) {
    return {reinterpret_cast<const char*>(data), size};
}

// Cuts off and returns what stands before the first NUL, or everything.
inline std::string_view next_part(std::string_view& rest) {
    const size_t end = std::min(rest.find('\0'), rest.size());
    const auto part = rest.substr(0, end);
    rest.remove_prefix(std::min(end + 1, rest.size()));
    return part;
}

class Folder {
  public:
    Folder() {
        std::string name = "/dev/shm/ether-fuzz-XXXXXX";
        if (!::mkdtemp(name.data())) abort();
        path_ = name;
    }
    ~Folder() { std::filesystem::remove_all(path_); }
    Folder(const Folder&) = delete;
    Folder& operator=(const Folder&) = delete;

    const std::filesystem::path& path() const { return path_; }
    std::filesystem::path write(const char* name, std::string_view bytes) const {
        std::ofstream(path_ / name, std::ios::binary) << bytes;
        return path_ / name;
    }
    void copy(const std::filesystem::path& file) const {
        std::filesystem::copy_file(file, path_ / file.filename());
    }

  private:
    std::filesystem::path path_;
};

}  // namespace ether::fuzz
