// Files and folders as the rest of the library reads and writes them: memory-mapped, or replaced in one step.
// A reader never sees half a file: writes go to a temporary name beside the target, are synced, then renamed.
// One thread per object; every failure is an Error of kind `file` with the path and the system's reason.
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

// The contents of a regular file or pipe; more than `limit` bytes (default 4 GiB) is an error.
std::string read_text_file(const std::filesystem::path& path, size_t limit = size_t{1} << 32);

// "NAME" for "NAME.tmp-<pid>-<number>", what a killed process may leave half-written; other names as they
// are.
std::string final_name(const std::string& name);

// A file written piece by piece under `<name>.tmp-<pid>-<number>` in the target's folder, which must exist.
// commit() gives it its name; without commit the destructor removes it and the target stays as it was.
class AtomicFile {
  public:
    explicit AtomicFile(const std::filesystem::path& path);
    ~AtomicFile();
    AtomicFile(const AtomicFile&) = delete;
    AtomicFile& operator=(const AtomicFile&) = delete;

    void write(std::string_view bytes);
    void commit();

  private:
    void flush();
    void write_through(std::string_view bytes);

    std::filesystem::path path_, temporary_;
    std::string buffer_;
    int descriptor_ = -1;
};

void write_file_atomic(const std::filesystem::path& path, std::string_view bytes);

// A folder filled under a temporary name beside the target; missing parents of the target are made.
// commit() syncs all files and gives the folder its name; without commit the destructor removes it.
class AtomicFolder {
  public:
    enum class Existing {
        refuse,   // a target that exists and is not an empty folder is an error, at once and at commit
        replace,  // a target folder is exchanged for the new one, then deleted with all it holds
    };
    explicit AtomicFolder(const std::filesystem::path& path, Existing existing = Existing::refuse);
    ~AtomicFolder();
    AtomicFolder(const AtomicFolder&) = delete;
    AtomicFolder& operator=(const AtomicFolder&) = delete;

    const std::filesystem::path& path() const { return temporary_; }  // where to write
    void commit();

  private:
    bool check_target() const;  // whether something must be replaced

    std::filesystem::path target_, temporary_;
    Existing existing_;
    bool committed_ = false;
};

}  // namespace ether::io
