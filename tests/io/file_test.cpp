#include "ether/io/file.h"

#include <sys/stat.h>

#include <fstream>
#include <string>
#include <thread>

#include "ether/io/atomic.h"
#include "io/test_files.h"

namespace ether::io {
namespace {

using test::TempFolder;
using test::write_raw;
namespace fs = std::filesystem;

std::string text_of(const MappedFile& file) {
    return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
}

TEST(MappedFile, ShowsTheBytes) {
    TempFolder folder;
    write_raw(folder / "a", std::string("x\0y", 3));
    const MappedFile file(folder / "a");
    EXPECT_EQ(text_of(file), std::string("x\0y", 3));
    write_raw(folder / "empty", "");
    EXPECT_TRUE(MappedFile(folder / "empty").bytes().empty());
}

// The process's resident memory that is mapped from files, in bytes.
int64_t resident_file_bytes() {
    std::ifstream status("/proc/self/status");
    for (std::string line; std::getline(status, line);)
        if (line.starts_with("RssFile:")) return std::stoll(line.substr(8)) * 1024;
    return -1;
}

TEST(MappedFile, ReleasesPagesThatReadAgain) {
    const TempFolder folder;
    const std::string text(int64_t{8} << 20, 'x');
    write_file_atomic(folder / "a", text);
    const MappedFile file(folder / "a");
    EXPECT_EQ(text_of(file), text);
    const auto before = resident_file_bytes();
    file.release(file.bytes().subspan(1));
    EXPECT_LT(resident_file_bytes(), before - (int64_t{7} << 20));
    EXPECT_EQ(text_of(file), text);
    file.release(file.bytes().first(10));  // less than a page
    file.release({});
}

TEST(MappedFile, NamesPathAndReason) {
    TempFolder folder;
    EXPECT_FAILS(file, "missing: cannot open: No such file", MappedFile(folder / "missing"));
    EXPECT_FAILS(file, "found a folder", MappedFile file(folder.path()));
    ASSERT_EQ(::mkfifo((folder / "pipe").c_str(), 0600), 0);
    EXPECT_FAILS(file, "pipe: expected a regular file", MappedFile(folder / "pipe"));
    fs::create_symlink(folder / "b", folder / "a");
    fs::create_symlink(folder / "a", folder / "b");
    EXPECT_FAILS(file, "a: cannot open: Too many levels of symbolic links", MappedFile(folder / "a"));
}

TEST(HasEntry, SeesLinksAndSaysWhereItCannotLook) {
    TempFolder folder;
    fs::create_symlink("loop", folder / "loop");
    EXPECT_TRUE(has_entry(folder / "loop"));
    EXPECT_FALSE(has_entry(folder / "none"));
    EXPECT_FALSE(has_entry(folder / "none/a"));
    EXPECT_FAILS(file, "loop/a: cannot examine: Too many levels", has_entry(folder / "loop/a"));
}

TEST(ReadTextFile, ReadsWholeFilesUpToTheLimit) {
    TempFolder folder;
    const std::string text(3 * 1024 * 1024 + 1, 'x');
    write_raw(folder / "a", text);
    EXPECT_EQ(read_text_file(folder / "a"), text);
    EXPECT_EQ(read_text_file(folder / "a", text.size()), text);
    EXPECT_FAILS(file, "is longer than", read_text_file(folder / "a", text.size() - 1));
    EXPECT_FAILS(file, "expected a regular file", read_text_file("/dev/zero"));
    EXPECT_FAILS(file, "expected a file, found a folder", read_text_file(folder.path()));
    ASSERT_EQ(::mkfifo((folder / "pipe").c_str(), 0600), 0);
    EXPECT_FAILS(file, "expected a regular file", read_text_file(folder / "pipe"));
    std::thread writer([&] { std::ofstream(folder / "pipe") << text; });
    EXPECT_EQ(read_input(folder / "pipe"), text);
    writer.join();
}

}  // namespace
}  // namespace ether::io
