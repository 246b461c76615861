// Helpers for tests that touch files: a folder that cleans up after itself, and errors checked by kind and
// words.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <string>
#include <string_view>

#include "ether/core/error.h"

namespace ether::test {

class TempFolder {
  public:
    TempFolder() {
        std::string name = (std::filesystem::temp_directory_path() / "ether-test-XXXXXX").string();
        if (::mkdtemp(name.data()) == nullptr) std::abort();
        path_ = name;
    }
    ~TempFolder() { std::filesystem::remove_all(path_); }
    TempFolder(const TempFolder&) = delete;
    TempFolder& operator=(const TempFolder&) = delete;

    const std::filesystem::path& path() const { return path_; }
    std::filesystem::path operator/(std::string_view name) const { return path_ / name; }

    // Number of entries, to see that nothing was left behind.
    std::ptrdiff_t count() const {
        return std::distance(std::filesystem::directory_iterator(path_),
                             std::filesystem::directory_iterator());
    }

  private:
    std::filesystem::path path_;
};

inline void write_raw(const std::filesystem::path& path, std::string_view bytes) {
    std::ofstream(path, std::ios::binary) << bytes;
}

inline std::string read_raw(const std::filesystem::path& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

// The Error that the body throws, if it does.
template <typename Body>
std::optional<Error> error_of(const Body& body) {
    try {
        body();
    } catch (const Error& error) {
        return error;
    }
    return std::nullopt;
}

// The message has the given kind and words, and is one line.
template <typename Body>
::testing::AssertionResult fails_with(ErrorKind kind, std::string_view words, const Body& body) {
    const std::optional<Error> error = error_of(body);
    if (!error) return ::testing::AssertionFailure() << "no error, expected one with: " << words;
    const std::string_view message = error->what();
    if (error->kind() != kind || message.find(words) == std::string_view::npos ||
        message.find('\n') != std::string_view::npos)
        return ::testing::AssertionFailure()
               << "expected kind " << static_cast<int>(kind) << " and \"" << words << "\", found kind "
               << static_cast<int>(error->kind()) << " and \"" << message << "\"";
    return ::testing::AssertionSuccess();
}

}  // namespace ether::test

// EXPECT_FAILS(kind, "words of the message", expression)
#define EXPECT_FAILS(kind, words, ...) \
    EXPECT_TRUE(::ether::test::fails_with(::ether::ErrorKind::kind, words, [&] { __VA_ARGS__; }))
