// Files and folders as the library writes them: a reader never sees half of one. They go to a temporary name
// beside the target, are synced, and then renamed. One thread per object; every failure is an Error of kind
// `file` with the path and the system's reason.
#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace ether::io {

// "NAME" for "NAME.tmp-<pid>-<number>", what a killed process may leave half-written; other names as they
// are.
std::string final_name(const std::string& name);

// From here on SIGINT, SIGTERM and SIGHUP remove every AtomicFile and AtomicFolder that is not committed, and
// then end the process as they do by default. For main(), before there are other threads; process-wide.
void remove_temporaries_on_signals();

// What an AtomicFile or AtomicFolder is called until it has its name.
class Temporary {
  public:
    // Beside `target`, under a name that nothing has; make: makes it there and returns 0 or errno.
    Temporary(const std::filesystem::path& target,
              const std::function<int(const std::filesystem::path&)>& make);
    ~Temporary();  // removes what is there
    Temporary(const Temporary&) = delete;
    Temporary& operator=(const Temporary&) = delete;

    const std::filesystem::path& path() const { return path_; }

  private:
    std::filesystem::path path_;
};

// A folder and those of its parents that are missing, made at once and, unless kept, removed again where they
// are empty still.
class NewFolders {
  public:
    explicit NewFolders(const std::filesystem::path& path);
    ~NewFolders();
    NewFolders(const NewFolders&) = delete;
    NewFolders& operator=(const NewFolders&) = delete;

    void keep();

  private:
    void remove();

    std::vector<std::filesystem::path> made_;  // the deepest one first
};

// A file written piece by piece in the target's folder, which must exist. commit() gives it its name; without
// commit the target stays as it was.
class AtomicFile {
  public:
    explicit AtomicFile(const std::filesystem::path& path);
    ~AtomicFile();
    AtomicFile(const AtomicFile&) = delete;
    AtomicFile& operator=(const AtomicFile&) = delete;

    const std::filesystem::path& target() const { return path_; }
    void write(std::string_view bytes);
    // Brings what was written to the disk: after it only the renaming can fail.
    void sync();
    void commit();  // sync, then rename

  private:
    void flush();
    void write_through(std::string_view bytes);

    std::filesystem::path path_;
    int descriptor_ = -1;
    Temporary temporary_;
    std::string buffer_;
};

void write_file_atomic(const std::filesystem::path& path, std::string_view bytes);

// A folder filled under a temporary name beside the target; missing parents of the target are made, for as
// long as it is not committed. commit() syncs all files and gives the folder its name.
class AtomicFolder {
  public:
    enum class Existing {
        refuse,   // a target that exists and is not an empty folder is an error, at once and at commit
        replace,  // a target folder is exchanged for the new one, then deleted with all it holds
    };
    explicit AtomicFolder(const std::filesystem::path& path, Existing existing = Existing::refuse);
    AtomicFolder(const AtomicFolder&) = delete;
    AtomicFolder& operator=(const AtomicFolder&) = delete;

    const std::filesystem::path& path() const { return temporary_.path(); }  // where to write
    void commit();

  private:
    bool check_target() const;  // whether something must be replaced
    std::filesystem::path checked_parent() const;

    std::filesystem::path target_;
    Existing existing_;
    NewFolders parents_;
    Temporary temporary_;
    bool committed_ = false;
};

}  // namespace ether::io
