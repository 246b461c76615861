#include "line_reader.h"

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <cctype>
#include <cerrno>
#include <cstring>
#include <string_view>
#include <utility>

#include "ether/core/error.h"
#include "ether/core/utf8.h"

namespace ether::app {
namespace {

constexpr size_t kPiece = size_t{1} << 18;  // bytes of a read

}  // namespace

LineReader::LineReader(const std::string& path)
    : name_(path.empty() ? "standard input" : path),
      descriptor_(path.empty() ? STDIN_FILENO : ::open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
    if (descriptor_ < 0) fail(ErrorKind::file, "{}: cannot open: {}", name_, std::strerror(errno));
}

LineReader::~LineReader() {
    if (descriptor_ != STDIN_FILENO) ::close(descriptor_);
}

bool LineReader::ready() const {
    pollfd input{.fd = descriptor_, .events = POLLIN, .revents = 0};
    return ::poll(&input, 1, 0) == 1;
}

bool LineReader::fill() {
    if (ended_) return false;
    const size_t used = buffer_.size();
    buffer_.resize(used + kPiece);
    ssize_t count = 0;
    do count = ::read(descriptor_, buffer_.data() + used, kPiece);
    while (count < 0 && errno == EINTR);
    if (count < 0) fail(ErrorKind::file, "{}: cannot read: {}", name_, std::strerror(errno));
    buffer_.resize(used + static_cast<size_t>(count));
    ended_ = count == 0;
    if (begun_) return !ended_;
    if (!ended_ && kByteOrderMark.starts_with(buffer_)) return fill();  // it may be one that is not whole yet
    begun_ = true;
    if (buffer_.starts_with(kByteOrderMark)) buffer_.erase(0, kByteOrderMark.size());
    return !ended_ || !buffer_.empty();
}

std::string LineReader::start() {
    for (;;) {
        std::string found;
        for (const char c : buffer_) {
            if (std::isspace(static_cast<unsigned char>(c))) continue;
            found += c;
            if (found.size() == 2 || (c != '[' && c != '{')) return found;
        }
        if (!fill()) return found;
    }
}

std::string LineReader::lines(int64_t most) {
    size_t end = 0, searched = 0;
    for (int64_t count = 0; count < most;) {
        const size_t found = buffer_.find('\n', searched);
        if (found != std::string::npos) {
            end = searched = found + 1;
            ++count;
            continue;
        }
        searched = buffer_.size();
        if (count > 0 && !ended_ && !ready()) break;
        if (!fill()) {
            end = buffer_.size();  // a last line without an end
            break;
        }
    }
    std::string text = buffer_.substr(0, end);
    buffer_.erase(0, end);
    return text;
}

std::string LineReader::rest() {
    while (fill()) {
    }
    return std::exchange(buffer_, {});
}

}  // namespace ether::app
