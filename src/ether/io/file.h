// Files as the rest of the library reads them: memory-mapped, or whole as text. One thread per object; every
// failure is an Error of kind `file` with the path and the system's reason.
#pragma once

#include <cstddef>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

namespace ether::io {

// A whole file mapped read-only and privately. Writing through the mapping faults. A file that another
// program shortens while it is mapped raises SIGBUS on the lost pages, and so does a disk that fails; our own
// writers replace files, so never do that.
class MappedFile {
  public:
    explicit MappedFile(const std::filesystem::path& path);
    ~MappedFile();
    MappedFile(const MappedFile&) = delete;
    MappedFile& operator=(const MappedFile&) = delete;

    std::span<const std::byte> bytes() const { return {data_, size_}; }
    // Takes the pages that lie within a part of bytes() out of this process's memory; reading brings them
    // back.
    void release(std::span<const std::byte> part) const;
    const std::filesystem::path& path() const { return path_; }

  private:
    std::filesystem::path path_;
    const std::byte* data_ = nullptr;
    size_t size_ = 0;
};

// From here on such a SIGBUS ends the process with exit code 1 and one line that names the file. For main();
// process-wide.
void install_map_fault_handler();

// Whether the path has an entry, even a link that leads nowhere: opening that then says why it fails. A
// folder that cannot be looked into (a loop of links, no permission) is an error.
bool has_entry(const std::filesystem::path& path);

// The contents of a regular file, as a model's or an adapter's are; more than `limit` bytes (default 512 MiB)
// is an error.
std::string read_text_file(const std::filesystem::path& path, size_t limit = size_t{1} << 29);

// The same of what a user names: it may be a pipe, too, and has up to 4 GiB.
std::string read_input(const std::filesystem::path& path);

}  // namespace ether::io
