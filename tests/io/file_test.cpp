#include "ether/io/file.h"

#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <csignal>
#include <fstream>
#include <string>

#include "io/test_files.h"

namespace ether::io {
namespace {

using test::read_raw;
using test::TempFolder;
using test::write_raw;
namespace fs = std::filesystem;

std::string text_of(const MappedFile& file) {
    return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
}

TEST(FinalName, IsWhatATemporaryOneIsToBecome) {
    for (const auto& [name, result] : {std::pair("run.toml.tmp-12-0", "run.toml"),
                                       {"step-000000010.tmp-7-31", "step-000000010"},
                                       {"notes.tmp-2024", "notes.tmp-2024"},
                                       {".tmp-1-2", ".tmp-1-2"},
                                       {"a.tmp-1-2.gz", "a.tmp-1-2.gz"},
                                       {"run.toml", "run.toml"}})
        EXPECT_EQ(final_name(name), result);
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
    EXPECT_FAILS(file, "is longer than", read_text_file("/dev/zero", 1000));
    EXPECT_FAILS(file, "cannot read: Is a directory", read_text_file(folder.path()));
}

TEST(AtomicFile, ReplacesOnlyAtCommit) {
    TempFolder folder;
    write_file_atomic(folder / "a", "old");
    {
        AtomicFile file(folder / "a");
        file.write("new");
        EXPECT_EQ(read_raw(folder / "a"), "old");
        EXPECT_EQ(folder.count(), 2);
    }
    EXPECT_EQ(folder.count(), 1) << "an abandoned file must leave nothing";
    EXPECT_EQ(read_raw(folder / "a"), "old");

    AtomicFile file(folder / "a");
    const std::string large(2'500'000, 'z');
    for (const std::string& part : {std::string("new"), large, std::string("end")}) file.write(part);
    file.commit();
    EXPECT_EQ(read_raw(folder / "a"), "new" + large + "end");
    EXPECT_EQ(folder.count(), 1);
}

TEST(AtomicFile, TwoWritersDoNotMix) {
    TempFolder folder;
    AtomicFile first(folder / "a"), second(folder / "a");
    first.write("first");
    second.write("second");
    second.commit();
    first.commit();
    EXPECT_EQ(read_raw(folder / "a"), "first");
    EXPECT_EQ(folder.count(), 1);
}

TEST(AtomicFile, NamesPathAndReason) {
    TempFolder folder;
    EXPECT_FAILS(file, "nowhere/a: cannot create", AtomicFile(folder / "nowhere/a"));
    EXPECT_FAILS(file, "not a regular file", AtomicFile file(folder.path()));
    EXPECT_FAILS(file, "/dev/full: exists and is not a regular file", AtomicFile("/dev/full"));
    EXPECT_FAILS(file, "File name too long", AtomicFile(folder / std::string(255, 'n')));
    if (::geteuid() != 0) {
        fs::permissions(folder.path(), fs::perms::owner_read | fs::perms::owner_exec);
        EXPECT_FAILS(file, "a: cannot create", AtomicFile(folder / "a"));
        fs::permissions(folder.path(), fs::perms::owner_all);
    }
}

TEST(AtomicFile, FullDiskKeepsTheOldFile) {
    TempFolder folder;
    if (::mount("tmpfs", folder.path().c_str(), "tmpfs", 0, "size=64k") != 0)
        GTEST_SKIP() << "cannot mount a tmpfs";
    write_raw(folder / "a", "old");
    EXPECT_FAILS(file, "a: cannot write: No space left on device",
                 write_file_atomic(folder / "a", std::string(1'000'000, 'x')));
    EXPECT_EQ(read_raw(folder / "a"), "old");
    EXPECT_EQ(folder.count(), 1);
    ASSERT_EQ(::umount(folder.path().c_str()), 0);
}

TEST(AtomicFile, SizeLimitKeepsTheOldFile) {
    TempFolder folder;
    write_raw(folder / "a", "old");
    rlimit before{};
    ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
    const auto handler = std::signal(SIGXFSZ, SIG_IGN);
    const rlimit small{1000, before.rlim_max};
    ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
    EXPECT_FAILS(file, "a: cannot write: File too large",
                 write_file_atomic(folder / "a", std::string(5000, 'x')));
    ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
    std::signal(SIGXFSZ, handler);
    EXPECT_EQ(read_raw(folder / "a"), "old");
    EXPECT_EQ(folder.count(), 1);
}

TEST(AtomicFolder, AppearsAtCommit) {
    TempFolder folder;
    {
        AtomicFolder abandoned(folder / "out");
        write_raw(abandoned.path() / "a", "1");
    }
    EXPECT_EQ(folder.count(), 0);
    AtomicFolder made(folder / "deep/er/out/");
    write_raw(made.path() / "a", "1");
    fs::create_directory(made.path() / "inner");
    write_raw(made.path() / "inner/b", "2");
    EXPECT_FALSE(fs::exists(folder / "deep/er/out"));
    made.commit();
    EXPECT_EQ(read_raw(folder / "deep/er/out/a"), "1");
    EXPECT_EQ(read_raw(folder / "deep/er/out/inner/b"), "2");
    EXPECT_EQ(std::distance(fs::directory_iterator(folder / "deep/er"), fs::directory_iterator()), 1);
}

TEST(AtomicFolder, ReplacesOnlyWhenTold) {
    TempFolder folder;
    fs::create_directory(folder / "out");
    {
        AtomicFolder empty_target(folder / "out");
        write_raw(empty_target.path() / "old", "1");
        empty_target.commit();
    }
    EXPECT_FAILS(file, "out: the folder exists and is not empty", AtomicFolder(folder / "out"));
    AtomicFolder made(folder / "out", AtomicFolder::Existing::replace);
    write_raw(made.path() / "new", "2");
    EXPECT_TRUE(fs::exists(folder / "out/old"));
    made.commit();
    EXPECT_FALSE(fs::exists(folder / "out/old"));
    EXPECT_EQ(read_raw(folder / "out/new"), "2");
    EXPECT_EQ(folder.count(), 1);
}

TEST(AtomicFolder, RefusesWhatIsNoFolder) {
    TempFolder folder;
    write_raw(folder / "file", "x");
    EXPECT_FAILS(file, "file: exists and is not a folder",
                 AtomicFolder(folder / "file", AtomicFolder::Existing::replace));
    EXPECT_FAILS(file, "cannot create", AtomicFolder(folder / "file/out"));
    EXPECT_FAILS(file, "expected the name of a new folder", AtomicFolder(".."));
    EXPECT_FAILS(file, "expected the name of a new folder", AtomicFolder(""));
    AtomicFolder made(folder / "out");
    fs::create_directories(folder / "out/late");  // by another program, between construction and commit
    EXPECT_FAILS(file, "not empty", made.commit());
}

}  // namespace
}  // namespace ether::io
