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
#include <utility>

#include "ether/core/error.h"

namespace ether::io {
namespace fs = std::filesystem;
namespace {

constexpr size_t kBufferBytes = size_t{1} << 20;

[[noreturn]] void fail_system(const fs::path& path, std::string_view action, int code) {
    fail(ErrorKind::file, "{}: cannot {}: {}", path.string(), action, std::generic_category().message(code));
}

class Descriptor {
  public:
    Descriptor(const fs::path& path, int flags) : value_(::open(path.c_str(), flags | O_CLOEXEC)) {
        if (value_ < 0) fail_system(path, "open", errno);
    }
    ~Descriptor() { ::close(value_); }
    Descriptor(const Descriptor&) = delete;
    Descriptor& operator=(const Descriptor&) = delete;
    int get() const { return value_; }

  private:
    int value_;
};

void sync(const fs::path& path, int flags) {
    Descriptor file(path, flags);
    // Some network and overlay file systems cannot sync a folder and say EINVAL; nothing more can be done
    // there.
    if (::fsync(file.get()) != 0 && errno != EINVAL) fail_system(path, "sync to disk", errno);
}

fs::path folder_of(const fs::path& path) {
    return path.has_parent_path() ? path.parent_path() : fs::path(".");
}

constexpr std::string_view kTemporaryMark = ".tmp-";

// The process id tells a user whose leftover it is; the number keeps threads of one process apart. final_name
// is the way back.
fs::path temporary_name(const fs::path& path) {
    static std::atomic<int> counter{0};
    return folder_of(path) /
           fmt::format("{}{}{}-{}", path.filename().string(), kTemporaryMark, ::getpid(), counter++);
}

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

}  // namespace

void install_map_fault_handler() {
    struct sigaction action {};
    action.sa_sigaction = tell_map_fault;
    action.sa_flags = SA_SIGINFO;
    ::sigaction(SIGBUS, &action, nullptr);
}

MappedFile::MappedFile(const fs::path& path) : path_(path) {
    Descriptor file(path, O_RDONLY | O_NONBLOCK);  // a pipe is refused below, not waited for
    struct stat status {};
    if (::fstat(file.get(), &status) != 0) fail_system(path, "examine", errno);
    if (S_ISDIR(status.st_mode)) fail(ErrorKind::file, "{}: expected a file, found a folder", path.string());
    if (!S_ISREG(status.st_mode)) fail(ErrorKind::file, "{}: expected a regular file", path.string());
    size_ = static_cast<size_t>(status.st_size);
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

std::string final_name(const std::string& name) {
    const size_t end = name.rfind(kTemporaryMark);
    if (end == std::string::npos || end == 0) return name;
    const std::string_view numbers = std::string_view(name).substr(end + kTemporaryMark.size());
    const size_t dash = numbers.find('-');
    const auto is_number = [](std::string_view text) {
        return !text.empty() && text.find_first_not_of("0123456789") == std::string_view::npos;
    };
    if (dash == std::string_view::npos || !is_number(numbers.substr(0, dash)) ||
        !is_number(numbers.substr(dash + 1)))
        return name;
    return name.substr(0, end);
}

bool has_entry(const fs::path& path) {
    std::error_code code;
    const fs::file_status status = fs::symlink_status(path, code);
    if (status.type() == fs::file_type::none) fail_system(path, "examine", code.value());
    return fs::exists(status);
}

std::string read_text_file(const fs::path& path, size_t limit) {
    Descriptor file(path, O_RDONLY);
    struct stat status {};
    if (::fstat(file.get(), &status) != 0) fail_system(path, "examine", errno);
    std::string text;
    if (S_ISREG(status.st_mode) && static_cast<size_t>(status.st_size) <= limit)
        text.reserve(static_cast<size_t>(status.st_size) +
                     kBufferBytes);  // room for the read that finds the end
    for (size_t used = 0;;) {
        text.resize(used + kBufferBytes);
        const ssize_t count = ::read(file.get(), text.data() + used, kBufferBytes);
        if (count < 0) {
            if (errno == EINTR) continue;
            fail_system(path, "read", errno);
        }
        used += static_cast<size_t>(count);
        if (used > limit)
            fail(ErrorKind::file, "{}: is longer than the {} bytes that are read here", path.string(), limit);
        if (count == 0) {
            text.resize(used);
            return text;
        }
    }
}

AtomicFile::AtomicFile(const fs::path& path) : path_(path), temporary_(temporary_name(path)) {
    if (!path.has_filename()) fail(ErrorKind::file, "{}: expected a file's name", path.string());
    struct stat status {};
    if (::stat(path.c_str(), &status) == 0 && !S_ISREG(status.st_mode))
        fail(ErrorKind::file, "{}: exists and is not a regular file, so it is not replaced", path.string());
    descriptor_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0666);
    if (descriptor_ < 0) fail_system(path, fmt::format("create {}", temporary_.filename().string()), errno);
}

AtomicFile::~AtomicFile() {
    if (descriptor_ < 0) return;
    ::close(descriptor_);
    ::unlink(temporary_.c_str());
}

void AtomicFile::write(std::string_view bytes) {
    ETHER_ASSERT(descriptor_ >= 0);
    if (buffer_.size() + bytes.size() > kBufferBytes) flush();
    if (bytes.size() >= kBufferBytes)
        write_through(bytes);
    else
        buffer_.append(bytes);
}

void AtomicFile::flush() {
    write_through(buffer_);
    buffer_.clear();
}

void AtomicFile::write_through(std::string_view bytes) {
    while (!bytes.empty()) {
        const ssize_t count = ::write(descriptor_, bytes.data(), bytes.size());
        if (count < 0) {
            if (errno == EINTR) continue;
            fail_system(path_, "write", errno);
        }
        bytes.remove_prefix(static_cast<size_t>(count));
    }
}

void AtomicFile::commit() {
    ETHER_ASSERT(descriptor_ >= 0);
    flush();
    if (::fsync(descriptor_) != 0) fail_system(path_, "sync to disk", errno);
    if (::rename(temporary_.c_str(), path_.c_str()) != 0) fail_system(path_, "rename into place", errno);
    const int descriptor = std::exchange(descriptor_, -1);  // from here on there is no temporary to remove
    if (::close(descriptor) != 0) fail_system(path_, "close", errno);
    sync(folder_of(path_), O_RDONLY | O_DIRECTORY);
}

void write_file_atomic(const fs::path& path, std::string_view bytes) {
    AtomicFile file(path);
    file.write(bytes);
    file.commit();
}

AtomicFolder::AtomicFolder(const fs::path& path, Existing existing)
    // "out/" and "out" are the same folder, and the temporary must lie beside it, not in it.
    : target_(path.has_filename() ? path : path.parent_path()), existing_(existing) {
    if (!target_.has_filename() || target_.filename() == "." || target_.filename() == "..")
        fail(ErrorKind::file, "{}: expected the name of a new folder", path.string());
    temporary_ = temporary_name(target_);
    check_target();
    std::error_code code;
    fs::create_directories(folder_of(target_), code);
    if (code) fail_system(folder_of(target_), "create", code.value());
    if (::mkdir(temporary_.c_str(), 0777) != 0) fail_system(temporary_, "create", errno);
}

AtomicFolder::~AtomicFolder() {
    if (committed_) return;
    std::error_code ignored;
    fs::remove_all(temporary_, ignored);
}

bool AtomicFolder::check_target() const {
    std::error_code code;
    const fs::file_status status = fs::symlink_status(target_, code);
    if (status.type() == fs::file_type::not_found) return false;
    if (code) fail_system(target_, "examine", code.value());
    if (status.type() != fs::file_type::directory)
        fail(ErrorKind::file, "{}: exists and is not a folder, so it is not replaced", target_.string());
    const bool empty = fs::is_empty(target_, code);
    if (code) fail_system(target_, "list", code.value());
    if (!empty && existing_ == Existing::refuse)
        fail(ErrorKind::file, "{}: the folder exists and is not empty; name another, or remove it first",
             target_.string());
    return !empty;
}

void AtomicFolder::commit() {
    ETHER_ASSERT(!committed_);
    std::error_code code;
    for (fs::recursive_directory_iterator entry(temporary_, code), end; !code && entry != end;
         entry.increment(code))
        if (!entry->is_symlink()) sync(entry->path(), O_RDONLY);
    if (code) fail_system(temporary_, "list", code.value());
    sync(temporary_, O_RDONLY | O_DIRECTORY);

    if (check_target()) {
        if (::renameat2(AT_FDCWD, temporary_.c_str(), AT_FDCWD, target_.c_str(), RENAME_EXCHANGE) != 0) {
            // A file system without exchange: the target is missing for a moment.
            if (errno != EINVAL && errno != ENOSYS) fail_system(target_, "replace", errno);
            const fs::path old = temporary_name(target_);
            if (::rename(target_.c_str(), old.c_str()) != 0) fail_system(target_, "rename", errno);
            if (::rename(temporary_.c_str(), target_.c_str()) != 0)
                fail_system(target_, "rename into place", errno);
            temporary_ = old;
        }
        fs::remove_all(temporary_, code);  // now the old contents
        if (code) fail_system(temporary_, "remove", code.value());
    } else if (::rename(temporary_.c_str(), target_.c_str()) != 0) {
        fail_system(target_, "rename into place", errno);
    }
    committed_ = true;
    sync(folder_of(target_), O_RDONLY | O_DIRECTORY);
}

}  // namespace ether::io
