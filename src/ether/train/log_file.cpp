#include "ether/train/log_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <system_error>

#include "ether/core/error.h"
#include "ether/io/descriptor.h"

namespace ether::train {

LogFile::~LogFile() {
    if (descriptor_ >= 0) ::close(descriptor_);
}

void LogFile::fail_to(const char* action) const {
    fail(ErrorKind::file, "{}: cannot {}: {}", path_.string(), action,
         std::generic_category().message(errno));
}

void LogFile::open() {
    descriptor_ = io::open_own(path_, O_RDWR | O_APPEND, 0666);
    struct stat file {};
    if (::fstat(descriptor_, &file) != 0 || !S_ISREG(file.st_mode))
        fail(ErrorKind::file, "{}: is no regular file, so no log can be kept there", path_.string());
}

int64_t LogFile::length() const { return static_cast<int64_t>(::lseek(descriptor_, 0, SEEK_END)); }

void LogFile::begin() {
    // The file may be new: a checkpoint that counts on it must find its name after a power cut, too.
    const int folder = ::open(path_.parent_path().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder < 0) fail_to("sync the folder of");
    ::fsync(folder);  // some file systems cannot; nothing more can be done there
    ::close(folder);
    take(0);
    append(header());
}

void LogFile::take(int64_t bytes) {
    hash_ = std::make_unique<Hash>();
    std::array<char, 1 << 16> buffer;
    for (size_ = 0; size_ < bytes;) {
        const auto wanted = std::min<int64_t>(bytes - size_, buffer.size());
        const ssize_t count = ::pread(descriptor_, buffer.data(), static_cast<size_t>(wanted), size_);
        if (count < 0 && errno == EINTR) continue;
        if (count < 0) fail_to("read");
        if (count == 0) break;  // somebody shortens it
        hash_->extend({buffer.data(), static_cast<size_t>(count)});
        size_ += count;
    }
}

void LogFile::on_start(const RunInfo& info) {
    ETHER_ASSERT(descriptor_ < 0);
    path_ = info.folder / name_;
    open();
    const int64_t found = length();
    if (found > 0) take(kept_.bytes);
    if (found > 0 && (size_ < kept_.bytes || (kept_.bytes > 0 && hash_->hex() != kept_.hash)))
        fail(ErrorKind::file,
             "{}: expected the {} bytes that were there when the checkpoint was made, found {}; put the file "
             "back, or remove it to go on with a new one",
             path_.string(), kept_.bytes,
             size_ < kept_.bytes ? fmt::to_string(size_) : std::string("others"));
    if (found > kept_.bytes && ::ftruncate(descriptor_, kept_.bytes) != 0)
        fail_to("cut to the checkpoint's length");
    if (found == 0 || kept_.bytes == 0) begin();
}

void LogFile::append(std::string_view record) {
    ETHER_ASSERT(descriptor_ >= 0);
    for (auto rest = record; !rest.empty();) {
        const ssize_t count = ::write(descriptor_, rest.data(), rest.size());
        if (count < 0) {
            if (errno == EINTR) continue;
            const int reason = errno;
            // Half a record would spoil the file for its readers; if this fails too, the resumed run cuts it.
            if (length() > size_) [[maybe_unused]]
                const int ignored = ::ftruncate(descriptor_, size_);
            errno = reason;
            fail_to("write");
        }
        rest.remove_prefix(static_cast<size_t>(count));
    }
    hash_->extend(record);
    size_ += static_cast<int64_t>(record.size());
}

LogMark LogFile::log_mark() {
    ETHER_ASSERT(descriptor_ >= 0);
    const bool is_there = io::is_at(descriptor_, path_);
    if (!is_there || length() != size_) {  // others had a hand in it
        lost_ = true;
        if (!is_there) {
            ::close(std::exchange(descriptor_, -1));
            open();
        }
        take(length());
        if (size_ == 0) begin();
    }
    if (::fsync(descriptor_) != 0) fail_to("sync to disk");
    return {size_, hash_->hex()};
}

}  // namespace ether::train
