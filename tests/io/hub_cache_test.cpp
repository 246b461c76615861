#include "ether/io/hub_cache.h"

#include <cstdlib>

#include "io/test_files.h"

namespace ether::io {
namespace {

using test::TempFolder;
using test::write_raw;
namespace fs = std::filesystem;

class HubCache : public ::testing::Test {
  protected:
    HubCache() {
        for (const char* name : kVariables) {
            const char* value = std::getenv(name);
            saved_.emplace_back(value != nullptr ? std::optional<std::string>(value) : std::nullopt);
            ::unsetenv(name);
        }
        ::setenv("HOME", (folder_ / "home").c_str(), 1);
        make(folder_ / "home/.cache/huggingface/hub");
    }
    ~HubCache() override {
        for (size_t i = 0; i < std::size(kVariables); ++i)
            saved_[i] ? ::setenv(kVariables[i], saved_[i]->c_str(), 1) : ::unsetenv(kVariables[i]);
    }
    // A cache with org/name at main = 1111 and at the tag refs/pr/1 = 2222, and with plain = 3333.
    static void make(const fs::path& hub) {
        for (const char* snapshot :
             {"models--org--name/snapshots/1111", "models--org--name/snapshots/2222",
              "models--plain/snapshots/3333", "models--org--name/refs/refs/pr", "models--plain/refs"})
            fs::create_directories(hub / snapshot);
        write_raw(hub / "models--org--name/refs/main", "1111\n");
        write_raw(hub / "models--org--name/refs/refs/pr/1", "2222");
        write_raw(hub / "models--plain/refs/main", "3333");
    }
    static constexpr const char* kVariables[] = {"HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "HOME"};
    TempFolder folder_;
    std::vector<std::optional<std::string>> saved_;
};

TEST_F(HubCache, FindsNamesAndRevisions) {
    const fs::path hub = folder_ / "home/.cache/huggingface/hub";
    EXPECT_EQ(resolve_model("org/name"), hub / "models--org--name/snapshots/1111");
    EXPECT_EQ(resolve_model("org/name@main"), hub / "models--org--name/snapshots/1111");
    EXPECT_EQ(resolve_model("org/name@refs/pr/1"), hub / "models--org--name/snapshots/2222");
    EXPECT_EQ(resolve_model("org/name@2222"), hub / "models--org--name/snapshots/2222");
    EXPECT_EQ(resolve_model("plain"), hub / "models--plain/snapshots/3333");
}

// What could be a weight is one, but where the cache has such a revision, or a folder is called so.
TEST_F(HubCache, TellsWeightsOfAdaptersFromRevisions) {
    using Names = std::vector<std::pair<std::string, std::string>>;
    const auto split = [](const std::string& text) {
        Names names;
        for (const auto& [name, weight] : split_adapters(text)) names.emplace_back(name, weight);
        return names;
    };
    write_raw(folder_ / "home/.cache/huggingface/hub/models--org--name/refs/2.0", "2222");
    EXPECT_EQ(split("org/name@2.0"), (Names{{"org/name@2.0", ""}}));
    EXPECT_EQ(split("org/name@2.0@2.0"), (Names{{"org/name@2.0", "2.0"}}));
    EXPECT_EQ(split("org/name@0.5,plain@-1e-2,org/name@main"),
              (Names{{"org/name", "0.5"}, {"plain", "-1e-2"}, {"org/name@main", ""}}));
    const std::string folder = folder_ / "run@2";
    fs::create_directories(folder);
    EXPECT_EQ(split(folder), (Names{{folder, ""}}));
    EXPECT_EQ(split(folder + "@2"), (Names{{folder, "2"}}));
}

TEST_F(HubCache, FollowsTheEnvironment) {
    for (const auto& [variable, value, hub] :
         {std::tuple("XDG_CACHE_HOME", "x", "x/huggingface/hub"), std::tuple("HF_HOME", "h", "h/hub"),
          std::tuple("HF_HUB_CACHE", "c", "c")}) {
        make(folder_ / hub);
        ::setenv(variable, (folder_ / value).c_str(), 1);  // each wins over those before it
        EXPECT_EQ(resolve_model("plain"), folder_ / hub / "models--plain/snapshots/3333");
    }
}

TEST_F(HubCache, AFolderWins) {
    fs::create_directories(folder_ / "org/name");
    EXPECT_EQ(resolve_model((folder_ / "org/name").string()), folder_ / "org/name");
    write_raw(folder_ / "file", "x");
    EXPECT_FAILS(file, "expected a model folder, found a file", resolve_model((folder_ / "file").string()));
    fs::create_symlink("loop", folder_ / "loop");
    EXPECT_FAILS(file, "Too many levels of symbolic links", resolve_model((folder_ / "loop").string()));
}

TEST_F(HubCache, SaysWhereItLooked) {
    EXPECT_FAILS(file, "models--org--nam/refs/main", resolve_model("org/nam"));
    EXPECT_FAILS(file, "nothing is downloaded", resolve_model("org/nam"));
    EXPECT_FAILS(file, "org/name@v2: no such model", resolve_model("org/name@v2"));
    EXPECT_FAILS(usage, "empty", resolve_model(""));
    for (const std::string name :
         {"a/b/c", "/no/such/folder", "../../no-such-folder", "org/..", "org/name@../../x", "org/name@",
          "org/", "@main", "a b", "org/name@a/../b"})
        EXPECT_FAILS(file, "not a hub name", resolve_model(name)) << name;
    EXPECT_FAILS(file, "no such folder", resolve_model(std::string("x\0y", 3)));
    EXPECT_FAILS(file, "too long", resolve_model(std::string(5000, 'x')));
}

TEST_F(HubCache, DistrustsTheReference) {
    const fs::path hub = folder_ / "home/.cache/huggingface/hub";
    write_raw(hub / "models--org--name/refs/main", "../../../..");
    EXPECT_FAILS(format, "refs/main: expected a commit hash, found \"../../../..\"",
                 resolve_model("org/name"));
    write_raw(hub / "models--org--name/refs/main", "");
    EXPECT_FAILS(format, "expected a commit hash", resolve_model("org/name"));
    write_raw(hub / "models--org--name/refs/main", "4444");
    EXPECT_FAILS(file, "snapshots/4444", resolve_model("org/name"));
}

}  // namespace
}  // namespace ether::io
