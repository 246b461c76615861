#include "ether/io/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <system_error>

#include "ether/core/error.h"
#include "ether/io/descriptor.h"

namespace ether::io {
namespace fs = std::filesystem;
namespace {

constexpr size_t kBufferBytes = size_t{1} << 20;

// The files that are mapped now, where a signal handler can read them. One that finds no place is not named
// when it faults.
constinit std::array<std::atomic<const MappedFile*>, 1024> mapped_files{};

// Only what is safe in a signal handler: reads and write(2).
void tell_map_fault(int signal, siginfo_t* info, void*) {
    const auto* address = static_cast<const std::byte*>(info->si_addr);
    for (const auto& slot : mapped_files) {
        const MappedFile* file = slot.load();
        if (file == nullptr || address < file->bytes().data() ||
            address >= file->bytes().data() + file->bytes().size())
            continue;
        for (const char* text :
             {"ether: ", file->path().c_str(),
              ": cannot be read any more: the file was shortened while it was in use, or its disk "
              "failed; put it back and start again\n"})
            [[maybe_unused]] const auto ignored = ::write(STDERR_FILENO, text, std::strlen(text));
        ::_exit(1);
    }
    ::signal(signal, SIG_DFL);  // not ours: the access is repeated and ends the process
}

constexpr int kNotWaiting = O_RDONLY | O_NONBLOCK;  // for a pipe's other end: regular_size refuses pipes

size_t regular_size(const Descriptor& file, const fs::path& path) {
    struct stat status {};
    if (::fstat(file.get(), &status) != 0) fail_system(path, "examine", errno);
    if (S_ISDIR(status.st_mode)) fail(ErrorKind::file, "{}: expected a file, found a folder", path.string());
    if (!S_ISREG(status.st_mode)) fail(ErrorKind::file, "{}: expected a regular file", path.string());
    return static_cast<size_t>(status.st_size);
}

// expected: what the file's length is said to be, 0 where it has none.
std::string read_all(const Descriptor& file, const fs::path& path, size_t expected, size_t limit) {
    const auto check = [&](size_t size) {
        if (size > limit)
            fail(ErrorKind::file, "{}: is longer than the {} bytes that are read here", path.string(), limit);
    };
    check(expected);
    std::string text;
    text.reserve(expected + kBufferBytes);  // room for the read that finds the end
    for (size_t used = 0;;) {
        text.resize(used + kBufferBytes);
        const ssize_t count = ::read(file.get(), text.data() + used, kBufferBytes);
        if (count < 0) {
            if (errno == EINTR) continue;
            fail_system(path, "read", errno);
        }
        used += static_cast<size_t>(count);
        check(used);
        if (count == 0) {
            text.resize(used);
            return text;
        }
    }
}

}  // namespace

void install_map_fault_handler() {
    struct sigaction action {};
    action.sa_sigaction = tell_map_fault;
    action.sa_flags = SA_SIGINFO;
    ::sigaction(SIGBUS, &action, nullptr);
}

MappedFile::MappedFile(const fs::path& path) : path_(path) {
    const Descriptor file(path, kNotWaiting);
    size_ = regular_size(file, path);
    if (size_ == 0) return;  // mmap refuses an empty range
    void* data = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file.get(), 0);
    if (data == MAP_FAILED) fail_system(path, "map into memory", errno);
    data_ = static_cast<const std::byte*>(data);
    for (auto& slot : mapped_files)
        if (const MappedFile* none = nullptr; slot.compare_exchange_strong(none, this)) break;
}

MappedFile::~MappedFile() {
    for (auto& slot : mapped_files)
        if (const MappedFile* self = this; slot.compare_exchange_strong(self, nullptr)) break;
    if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
}

void MappedFile::release(std::span<const std::byte> part) const {
    const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
    const auto first = reinterpret_cast<uintptr_t>(part.data());
    const uintptr_t begin = (first + page - 1) / page * page, end = (first + part.size()) / page * page;
    if (begin < end) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

bool has_entry(const fs::path& path) {
    std::error_code code;
    const fs::file_status status = fs::symlink_status(path, code);
    if (status.type() == fs::file_type::none) fail_system(path, "examine", code.value());
    return fs::exists(status);
}

std::string read_text_file(const fs::path& path, size_t limit) {
    const Descriptor file(path, kNotWaiting);
    return read_all(file, path, regular_size(file, path), limit);
}

std::string read_input(const fs::path& path) {
    const Descriptor file(path, O_RDONLY);
    struct stat status {};
    const bool regular = ::fstat(file.get(), &status) == 0 && S_ISREG(status.st_mode);
    return read_all(file, path, regular ? static_cast<size_t>(status.st_size) : 0, size_t{1} << 32);
}

}  // namespace ether::io
