#include "ether/io/adapter_folder.h"

#include <ATen/ops/equal.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>

#include "io/test_files.h"

namespace ether::io {
namespace {

using test::TempFolder;
using test::write_raw;
namespace fs = std::filesystem;

AdapterFiles example() {
    AdapterFiles files;
    files.config = {{"peft_type", "LORA"}, {"r", 8}};
    files.tensors = {{"base_model.model.q.lora_A.weight", at::ones({8, 4})}, {"b", at::zeros({2})}};
    files.ether = {{"fingerprint", "00ff"}, {"labels", {"no", "yes"}}};
    return files;
}

TEST(AdapterFolder, RoundTrip) {
    const TempFolder folder;
    write_adapter(folder / "runs/a", example());
    write_raw(folder / "runs/a/log.jsonl", "kept");
    const AdapterFiles read = read_adapter(folder / "runs/a");
    EXPECT_EQ(read.config, example().config);
    EXPECT_EQ(read.ether, example().ether);
    ASSERT_EQ(read.tensors.size(), 2u);
    EXPECT_EQ(read.tensors[0].first, "b");
    EXPECT_EQ(read.tensors[1].first, "base_model.model.q.lora_A.weight");
    EXPECT_TRUE(at::equal(read.tensors[1].second, at::ones({8, 4})));

    AdapterFiles other = example();
    other.ether.reset();
    other.tensors = {{"c", at::ones({1})}};
    write_adapter(folder / "runs/a", other);
    EXPECT_FALSE(read_adapter(folder / "runs/a").ether) << "a former adapter's ether.json must not stay";
    EXPECT_EQ(read_adapter(folder / "runs/a").tensors.size(), 1u);
    EXPECT_EQ(test::read_raw(folder / "runs/a/log.jsonl"), "kept");
    EXPECT_TRUE(at::equal(read.tensors[1].second, at::ones({8, 4})))
        << "the old map must outlive the rewrite";
}

TEST(AdapterFolder, AFailedRewriteKeepsTheOldOne) {
    const TempFolder folder;
    write_adapter(folder.path(), example());
    AdapterFiles bad = example();
    bad.tensors.emplace_back("b", at::ones({1}));  // twice
    EXPECT_FAILS(format, "the name is taken", write_adapter(folder.path(), bad));
    bad.config["r"] = 16;
    EXPECT_FAILS(format, "the name is taken", write_adapter(folder.path(), bad));
    EXPECT_EQ(read_adapter(folder.path()).config, example().config);
    EXPECT_EQ(read_adapter(folder.path()).tensors.size(), 2u);
    EXPECT_EQ(folder.count(), 3);
}

TEST(AdapterFolder, RefusesWhatIsNoAdapter) {
    const TempFolder folder;
    EXPECT_FAILS(file, "none: cannot open the adapter folder", read_adapter(folder / "none"));
    EXPECT_FAILS(adapter, "holds no adapter_config.json", read_adapter(folder.path()));
    write_raw(folder / "adapter_config.json", "{}");
    EXPECT_FAILS(adapter, "found a file", read_adapter(folder / "adapter_config.json"));
    EXPECT_FAILS(adapter, "but no adapter_model.safetensors", read_adapter(folder.path()));
    write_raw(folder / "adapter_model.bin", "x");
    EXPECT_FAILS(adapter, "ether import --model DIR", read_adapter(folder.path()));
    EXPECT_FAILS(format, "adapter_model.bin: expected a file of torch.save",
                 read_adapter(folder.path(), Pickles::read));
    write_safetensors(folder / "adapter_model.safetensors", {});
    EXPECT_TRUE(read_adapter(folder.path()).tensors.empty());
    write_raw(folder / "ether.json", "[]");
    EXPECT_FAILS(format, "ether.json: expected a JSON object", read_adapter(folder.path()));
    write_raw(folder / "adapter_config.json", "nonsense");
    EXPECT_FAILS(format, "adapter_config.json:1:", read_adapter(folder.path()));
}

TEST(AdapterFolder, NamesTheFolderThatCannotBeMade) {
    const TempFolder folder;
    write_raw(folder / "file", "x");
    EXPECT_FAILS(file, "file/a: cannot create the folder", write_adapter(folder / "file/a", example()));
}

}  // namespace
}  // namespace ether::io
