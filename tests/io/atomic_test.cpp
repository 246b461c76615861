#include "ether/io/atomic.h"

#include <sys/mount.h>
#include <sys/resource.h>
#include <unistd.h>

#include <csignal>
#include <string>

#include "io/test_files.h"

namespace ether::io {
namespace {

using test::read_raw;
using test::TempFolder;
using test::write_raw;
namespace fs = std::filesystem;

TEST(FinalName, IsWhatATemporaryOneIsToBecome) {
    for (const auto& [name, result] : {std::pair("run.toml.tmp-12-0", "run.toml"),
                                       {"step-000000010.tmp-7-31", "step-000000010"},
                                       {"notes.tmp-2024", "notes.tmp-2024"},
                                       {".tmp-1-2", ".tmp-1-2"},
                                       {"a.tmp-1-2.gz", "a.tmp-1-2.gz"},
                                       {"run.toml", "run.toml"}})
        EXPECT_EQ(final_name(name), result);
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

TEST(AtomicFile, LeavesALeftoverOfTheSameProcessId) {
    TempFolder folder;
    std::string mine;
    {
        AtomicFile file(folder / "a");
        mine = fs::directory_iterator(folder.path())->path().filename().string();
    }
    const size_t number = mine.rfind('-') + 1;
    for (int ahead = 1; ahead <= 3; ++ahead)
        write_raw(folder / (mine.substr(0, number) + std::to_string(std::stoi(mine.substr(number)) + ahead)),
                  "other");
    write_file_atomic(folder / "a", "mine");
    EXPECT_EQ(read_raw(folder / "a"), "mine");
    EXPECT_EQ(folder.count(), 4);
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
