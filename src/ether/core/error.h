// Errors: one exception type for whatever a user can cause, one abort for our own bugs.
// A message says where (file, line, tensor, key), what was expected, what was found and what to do, in one
// line. Only main() maps an Error to an exit code; library code never prints and never exits.
#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <string>
#include <utility>

namespace ether {

enum class ErrorKind {
    usage,    // an option or its value
    file,     // the file system: missing, unreadable, full, locked
    format,   // a file's contents: safetensors, JSON, TOML, CSV
    model,    // a base model: unknown architecture, missing tensor, wrong shape
    adapter,  // an adapter: other base, unknown method or tensor
    data,     // examples: missing column, unknown label
    memory,   // a run that cannot fit
    numeric,  // NaN or infinity in weights, loss or gradients
};

class Error : public std::runtime_error {
  public:
    // Control characters, which names in a user's files may hold, become \xNN; what is very long is cut.
    Error(ErrorKind kind, const std::string& message);
    ErrorKind kind() const { return kind_; }

  private:
    ErrorKind kind_;
};

// Throws Error with a message in fmt's syntax.
template <typename... Args>
[[noreturn]] void fail(ErrorKind kind, fmt::format_string<Args...> format, Args&&... args) {
    throw Error(kind, fmt::format(format, std::forward<Args>(args)...));
}

// What body() returns. Its errors are told behind "prefix: "; those that blame the command line get the kind
// `usage`, for where it is not to blame.
template <typename Body>
auto with_prefix(const std::string& prefix, Body&& body, ErrorKind usage = ErrorKind::usage) {
    try {
        return body();
    } catch (const Error& error) {
        fail(error.kind() == ErrorKind::usage ? usage : error.kind(), "{}: {}", prefix, error.what());
    }
}

// Prints the broken assumption and aborts. Never reachable by user input.
[[noreturn]] void assertion_failed(const char* condition, const char* file, int line);

}  // namespace ether

#define ETHER_ASSERT(condition) \
    ((condition) ? static_cast<void>(0) : ::ether::assertion_failed(#condition, __FILE__, __LINE__))
