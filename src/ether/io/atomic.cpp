#include "ether/io/atomic.h"

#include <sys/stat.h>

#include <atomic>
#include <csignal>
#include <cstdio>
#include <mutex>
#include <set>
#include <thread>
#include <utility>

#include "ether/core/interrupt.h"
#include "ether/io/descriptor.h"

namespace ether::io {
namespace fs = std::filesystem;
namespace {

constexpr size_t kBufferBytes = size_t{1} << 20;

void sync_path(const fs::path& path, int flags) {
    Descriptor file(path, flags);
    // Some network and overlay file systems cannot sync a folder and say EINVAL; nothing more can be done
    // there.
    if (::fsync(file.get()) != 0 && errno != EINVAL) fail_system(path, "sync to disk", errno);
}

fs::path folder_of(const fs::path& path) {
    return path.has_parent_path() ? path.parent_path() : fs::path(".");
}

constexpr std::string_view kTemporaryMark = ".tmp-";

// What remove_temporaries_on_signals removes. The lock is held while one is made and while one gets its name,
// so that none is missed and none is removed under its name.
struct Temporaries {
    std::mutex mutex;
    std::set<fs::path> paths;
    std::set<fs::path> parents;  // made for them, of which what is empty goes, too
};

Temporaries& temporaries() {
    static auto& all = *new Temporaries;  // never destroyed: a signal may come at the very end
    return all;
}

// The process id tells a user whose leftover it is; the number keeps threads of one process apart. final_name
// is the way back.
fs::path temporary_name(const fs::path& path) {
    static std::atomic<int> counter{0};
    return folder_of(path) /
           fmt::format("{}{}{}-{}", path.filename().string(), kTemporaryMark, ::getpid(), counter++);
}

const fs::path& checked_file(const fs::path& path) {
    if (!path.has_filename()) fail(ErrorKind::file, "\"{}\": expected a file's name", path.string());
    struct stat status {};
    if (::stat(path.c_str(), &status) == 0 && !S_ISREG(status.st_mode))
        fail(ErrorKind::file, "{}: exists and is not a regular file, so it is not replaced", path.string());
    return path;
}

fs::path checked_folder(const fs::path& path) {
    // "out/" and "out" are the same folder, and the temporary must lie beside it, not in it.
    fs::path folder = path.has_filename() ? path : path.parent_path();
    if (!folder.has_filename() || folder.filename() == "." || folder.filename() == "..")
        fail(ErrorKind::file, "\"{}\": expected the name of a new folder", path.string());
    return folder;
}

}  // namespace

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

void remove_temporaries_on_signals() {
    sigset_t waited;
    ::sigemptyset(&waited);
    for (const int signal : interrupt_signals()) ::sigaddset(&waited, signal);
    ::pthread_sigmask(SIG_BLOCK, &waited, nullptr);  // here and in all threads to come
    std::thread([waited] {
        int signal = 0;
        ::sigwait(&waited, &signal);
        const std::lock_guard lock(temporaries().mutex);
        // Whoever is writing goes on, and may put one more file into a folder that is being removed.
        std::error_code code;
        for (const auto& path : temporaries().paths)
            for (int tries = 0; tries < 3 && (fs::remove_all(path, code), code); ++tries) {
            }
        for (auto path = temporaries().parents.rbegin(); path != temporaries().parents.rend(); ++path)
            fs::remove(*path, code);
        ::signal(signal, SIG_DFL);
        ::pthread_sigmask(SIG_UNBLOCK, &waited, nullptr);
        ::raise(signal);
    }).detach();
}

// Waits for ever where remove_temporaries_on_signals is at work: a folder that it has removed must not come
// back.
NewFolders::NewFolders(const fs::path& path) {
    const std::lock_guard lock(temporaries().mutex);
    std::vector<fs::path> missing;  // the deepest one first
    std::error_code code;
    for (fs::path folder = path; !folder.empty() && !fs::exists(folder, code); folder = folder.parent_path())
        missing.push_back(folder);
    for (auto folder = missing.rbegin(); folder != missing.rend(); ++folder) {
        const bool made = fs::create_directory(*folder, code);
        if (code) {
            remove();
            fail_system(path, "create the folder", code.value());
        }
        if (!made) continue;  // someone else was faster
        made_.insert(made_.begin(), *folder);
        temporaries().parents.insert(*folder);
    }
}

NewFolders::~NewFolders() {
    const std::lock_guard lock(temporaries().mutex);
    remove();
}

void NewFolders::remove() {
    std::error_code ignored;
    for (const auto& folder : made_) {
        fs::remove(folder, ignored);
        temporaries().parents.erase(folder);
    }
}

void NewFolders::keep() {
    const std::lock_guard lock(temporaries().mutex);
    for (const auto& folder : std::exchange(made_, {})) temporaries().parents.erase(folder);
}

Temporary::Temporary(const fs::path& target, const std::function<int(const fs::path&)>& make) {
    const std::lock_guard lock(temporaries().mutex);
    int code = 0;
    do {  // in a container, what an earlier process left has the same process id
        path_ = temporary_name(target);
        code = make(path_);
    } while (code == EEXIST);
    if (code != 0) fail_system(target, fmt::format("create {}", path_.filename().string()), code);
    temporaries().paths.insert(path_);
}

Temporary::~Temporary() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
    const std::lock_guard lock(temporaries().mutex);
    temporaries().paths.erase(path_);
}

AtomicFile::AtomicFile(const fs::path& path)
    : path_(checked_file(path)), temporary_(path, [this](const fs::path& name) {
          descriptor_ = ::open(name.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0666);
          return descriptor_ < 0 ? errno : 0;
      }) {}

AtomicFile::~AtomicFile() {
    if (descriptor_ >= 0) ::close(descriptor_);
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

void AtomicFile::sync() {
    ETHER_ASSERT(descriptor_ >= 0);
    flush();
    if (::fsync(descriptor_) != 0) fail_system(path_, "sync to disk", errno);
}

void AtomicFile::commit() {
    sync();
    if (::rename(temporary_.path().c_str(), path_.c_str()) != 0)
        fail_system(path_, "rename into place", errno);
    const int descriptor = std::exchange(descriptor_, -1);
    if (::close(descriptor) != 0) fail_system(path_, "close", errno);
    sync_path(folder_of(path_), O_RDONLY | O_DIRECTORY);
}

void write_file_atomic(const fs::path& path, std::string_view bytes) {
    AtomicFile file(path);
    file.write(bytes);
    file.commit();
}

AtomicFolder::AtomicFolder(const fs::path& path, Existing existing)
    : target_(checked_folder(path)),
      existing_(existing),
      parents_(checked_parent()),
      temporary_(target_, [](const fs::path& name) { return ::mkdir(name.c_str(), 0777) == 0 ? 0 : errno; }) {
}

fs::path AtomicFolder::checked_parent() const {
    check_target();
    return folder_of(target_);
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
    for (fs::recursive_directory_iterator entry(path(), code), end; !code && entry != end;
         entry.increment(code))
        if (!entry->is_symlink()) sync_path(entry->path(), O_RDONLY);
    if (code) fail_system(path(), "list", code.value());
    sync_path(path(), O_RDONLY | O_DIRECTORY);

    std::unique_lock lock(temporaries().mutex);
    if (check_target()) {
        fs::path old = path();
        if (::renameat2(AT_FDCWD, path().c_str(), AT_FDCWD, target_.c_str(), RENAME_EXCHANGE) != 0) {
            // A file system without exchange: the target is missing for a moment.
            if (errno != EINVAL && errno != ENOSYS) fail_system(target_, "replace", errno);
            old = temporary_name(target_);
            if (::rename(target_.c_str(), old.c_str()) != 0) fail_system(target_, "rename", errno);
            if (::rename(path().c_str(), target_.c_str()) != 0) {
                const int code = errno;
                ::rename(old.c_str(), target_.c_str());
                fail_system(target_, "rename into place", code);
            }
        }
        fs::remove_all(old, code);
        if (code) fail_system(old, "remove", code.value());
    } else if (::rename(path().c_str(), target_.c_str()) != 0) {
        fail_system(target_, "rename into place", errno);
    }
    committed_ = true;
    lock.unlock();
    parents_.keep();
    sync_path(folder_of(target_), O_RDONLY | O_DIRECTORY);
}

}  // namespace ether::io
