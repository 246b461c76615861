#include "ether/io/checkpoint.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>

#include <limits>
#include <nlohmann/json.hpp>

#include "io/test_files.h"

namespace ether::io {
namespace {

using test::TempFolder;
using test::write_raw;
namespace fs = std::filesystem;

// A folder with config.json and two shards: "a" in the first, "b" in the second.
struct Sharded {
    Sharded() {
        write_raw(folder / "config.json", R"({"model_type": "bert"})");
        write_safetensors(folder / "m-1.safetensors", {{"a", at::arange(10'000, at::kFloat)}});
        write_safetensors(folder / "m-2.safetensors", {{"b", at::ones({2, 2}, at::kBFloat16)}});
        index({{"a", "m-1.safetensors"}, {"b", "m-2.safetensors"}});
    }
    void index(const nlohmann::json& weight_map) const {
        write_raw(folder / "model.safetensors.index.json", nlohmann::json{{"weight_map", weight_map}}.dump());
    }
    Checkpoint open() const { return Checkpoint::open(folder.path()); }
    TempFolder folder;
};

TEST(Checkpoint, ReadsOneFileOrShards) {
    const Sharded sharded;
    const Checkpoint shards = sharded.open();
    EXPECT_EQ(shards.names(), (std::vector<std::string>{"a", "b"}));
    EXPECT_EQ(shards.config().get<std::string>("model_type"), "bert");
    EXPECT_TRUE(at::equal(shards.tensor("a"), at::arange(10'000, at::kFloat)));
    EXPECT_EQ(shards.info("b").shape, (std::vector<int64_t>{2, 2}));
    EXPECT_FALSE(shards.contains("c"));
    EXPECT_FAILS(model, "the model has no tensor \"c\"", shards.tensor("c"));

    const TempFolder folder;
    write_raw(folder / "config.json", R"({"other": 1})");
    write_safetensors(folder / "model.safetensors", {{"a", shards.tensor("a")}, {"b", shards.tensor("b")}});
    const Checkpoint one = Checkpoint::open(folder.path());
    EXPECT_EQ(one.names(), shards.names());
    EXPECT_EQ(one.fingerprint(), shards.fingerprint());
    EXPECT_TRUE(one.fingerprint().starts_with(kFingerprintKind));
}

TEST(Checkpoint, KnowsWhereTheTokenizerCuts) {
    const Sharded sharded;
    const auto unlimited = std::numeric_limits<int64_t>::max();
    EXPECT_EQ(sharded.open().tokenizer_max_length(), unlimited);
    write_raw(sharded.folder / "tokenizer_config.json", R"({"model_max_length": 64})");
    EXPECT_EQ(sharded.open().tokenizer_max_length(), 64);
    for (const char* nothing : {R"({})", R"({"model_max_length": 1e30})", R"({"model_max_length": null})"}) {
        write_raw(sharded.folder / "tokenizer_config.json", nothing);
        EXPECT_EQ(sharded.open().tokenizer_max_length(), unlimited) << nothing;
    }
}

TEST(Checkpoint, FingerprintSeesNamesShapesDtypesAndValues) {
    const auto fingerprint = [](const NamedTensors& tensors) {
        const TempFolder folder;
        write_raw(folder / "config.json", "{}");
        write_safetensors(folder / "model.safetensors", tensors);
        return Checkpoint::open(folder.path()).fingerprint();
    };
    const at::Tensor base = at::zeros({100, 100}, at::kFloat);
    const std::string expected = fingerprint({{"a", base}});
    EXPECT_EQ(fingerprint({{"a", base.clone()}}), expected);
    EXPECT_NE(fingerprint({{"b", base}}), expected);
    EXPECT_NE(fingerprint({{"a", base.reshape({200, 50})}}), expected);
    EXPECT_NE(fingerprint({{"a", base.to(at::kInt)}}), expected);
    EXPECT_NE(fingerprint({{"a", base}, {"b", at::ones({1})}}), expected);
    EXPECT_NE(fingerprint({{"a", at::ones({100, 100})}}), expected);
    for (const int64_t row : {0, 13, 99}) {
        at::Tensor changed = base.clone();
        changed[row][row] = 1;
        EXPECT_NE(fingerprint({{"a", changed}}), expected) << row;
    }
}

TEST(Checkpoint, RefusesFoldersThatAreNoModel) {
    const TempFolder folder;
    EXPECT_FAILS(file, "none: cannot open the model folder", Checkpoint::open(folder / "none"));
    EXPECT_FAILS(model, "holds no config.json, so it is not a model folder", Checkpoint::open(folder.path()));
    write_raw(folder / "adapter_config.json", "{}");
    EXPECT_FAILS(model, "it is an adapter's folder", Checkpoint::open(folder.path()));
    write_raw(folder / "config.json", "{}");
    EXPECT_FAILS(file, "expected a model folder, found a file", Checkpoint::open(folder / "config.json"));
    EXPECT_FAILS(model, "expected model.safetensors or model.safetensors.index.json",
                 Checkpoint::open(folder.path()));
    write_raw(folder / "pytorch_model.bin", "x");
    EXPECT_FAILS(model, "safe_serialization=True", Checkpoint::open(folder.path()));
    write_raw(folder / "model.safetensors", "x");
    EXPECT_FAILS(format, "model.safetensors: not a safetensors file", Checkpoint::open(folder.path()));
    write_raw(folder / "config.json", "{");
    EXPECT_FAILS(format, "config.json:1:2: not valid JSON", Checkpoint::open(folder.path()));
}

TEST(Checkpoint, RefusesALoopOfLinks) {
    const Sharded sharded;
    fs::remove(sharded.folder / "m-1.safetensors");
    fs::create_symlink("m-1.safetensors", sharded.folder / "m-1.safetensors");
    EXPECT_FAILS(file, "Too many levels of symbolic links", sharded.open());
    const TempFolder folder;
    fs::create_symlink("loop", folder / "loop");
    EXPECT_FAILS(file, "loop: cannot open the model folder: Too many levels",
                 Checkpoint::open(folder / "loop"));
}

TEST(Checkpoint, RefusesFaultyIndexes) {
    const Sharded sharded;
    sharded.index({{"a", "m-1.safetensors"}, {"b", "m-3.safetensors"}});
    EXPECT_FAILS(file, "m-3.safetensors: the shard is missing", sharded.open());
    sharded.index({{"a", "m-1.safetensors"}, {"b", "m-2.safetensors"}, {"c", "m-2.safetensors"}});
    EXPECT_FAILS(format, "tensor \"c\" should be in m-2.safetensors but is not", sharded.open());
    sharded.index({{"a", "m-2.safetensors"}, {"b", "m-1.safetensors"}});
    EXPECT_FAILS(format, "tensor \"a\" should be in m-2.safetensors but is not", sharded.open());
    sharded.index(nlohmann::json::object());
    EXPECT_FAILS(format, "\"weight_map\" is empty", sharded.open());
    sharded.index({{"a", 1}});
    EXPECT_FAILS(format, "key \"weight_map.a\": expected a string", sharded.open());
    write_raw(sharded.folder / "model.safetensors.index.json", "{}");
    EXPECT_FAILS(format, "key \"weight_map\" is missing", sharded.open());
    for (const std::string name :
         {"../m-1.safetensors", "/etc/passwd", "..", ".", "", "x/../m-1.safetensors", "x\\y"}) {
        sharded.index({{"a", name}});
        EXPECT_FAILS(format, "expected the name of a file in this folder, found \"", sharded.open()) << name;
    }
    sharded.index({{"a", std::string("m-1.safetensors\0x", 17)}});
    EXPECT_FAILS(format, "expected the name of a file in this folder", sharded.open());
    write_safetensors(sharded.folder / "m-2.safetensors", {{"a", at::ones({1})}, {"b", at::ones({1})}});
    sharded.index({{"a", "m-1.safetensors"}, {"b", "m-2.safetensors"}});
    EXPECT_FAILS(format, "m-2.safetensors: tensor \"a\" is in m-1.safetensors too", sharded.open());
}

}  // namespace
}  // namespace ether::io
