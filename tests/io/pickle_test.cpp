#include "ether/io/pickle.h"

#include <ATen/Functions.h>

#include <map>

#include "ether/core/random.h"
#include "io/test_files.h"

// libtorch's reader loses what it has read of an archive's directory where it refuses the archive.
#if defined(__SANITIZE_ADDRESS__)
extern "C" const char* __lsan_default_suppressions() { return "leak:mz_zip_reader_init\n"; }
#endif

namespace ether::io {
namespace {

using test::TempFolder;
namespace fs = std::filesystem;

const fs::path kPickles = "tests/fixtures/pickles";  // tests/fixtures/make_pickles.py

TEST(Pickle, TensorsOfADictionaryAndOfThoseWithinIt) {
    std::map<std::string, at::Tensor> found;
    for (const auto& [name, tensor] : read_pickled_tensors(kPickles / "checkpoint.pth")) found[name] = tensor;
    ASSERT_EQ(found.size(), 5u);
    const auto rows = at::arange(6, at::kFloat).view({2, 3});
    EXPECT_TRUE(at::equal(found.at("transposed"), rows.t()));
    EXPECT_TRUE(found.at("transposed").is_contiguous());
    EXPECT_TRUE(at::equal(found.at("bf16"), rows.to(at::kBFloat16)));
    EXPECT_EQ(found.at("places").scalar_type(), at::kLong);
    EXPECT_FALSE(found.at("parameter").requires_grad());
    EXPECT_TRUE(at::equal(found.at("model.inner"), rows));
}

TEST(Pickle, ReadsWhatSafetensorsHold) {
    const SafetensorsFile expected("tests/fixtures/peft/bert_lora/adapter_model.safetensors");
    const auto tensors = read_pickled_tensors(kPickles / "bert_lora.bin");
    EXPECT_EQ(tensors.size(), expected.names().size());
    for (const auto& [name, tensor] : tensors) EXPECT_TRUE(at::equal(tensor, expected.tensor(name))) << name;
}

TEST(Pickle, RefusesWhatHoldsOtherThings) {
    EXPECT_FAILS(format, "before_zip.bin: expected a file of torch.save",
                 read_pickled_tensors(kPickles / "before_zip.bin"));
    EXPECT_FAILS(format, "list.bin: expected a dictionary of tensors",
                 read_pickled_tensors(kPickles / "list.bin"));
    EXPECT_FAILS(format, "object.bin: damaged, or holds other objects than tensors",
                 read_pickled_tensors(kPickles / "object.bin"));
    EXPECT_FAILS(format, "torch.save(dict(torch.load(f,", read_pickled_tensors(kPickles / "state_dict.bin"));
    EXPECT_FAILS(file, "none.bin: cannot open", read_pickled_tensors(kPickles / "none.bin"));
}

// A damaged file is read as far as its checksums let it, or refused: nothing else.
TEST(Pickle, DamagedFiles) {
    const TempFolder folder;
    const auto whole = test::read_raw(kPickles / "checkpoint.pth");
    const auto random = Random(7).stream("damage");
    int refused = 0;
    constexpr int kTries = 100;
    for (uint64_t i = 0; i < kTries; ++i) {
        auto bytes = whole;
        if (i % 4 == 0)
            bytes.resize(random.below(3 * i, whole.size()));
        else
            bytes[random.below(3 * i, bytes.size())] = static_cast<char>(random.below(3 * i + 1, 256));
        test::write_raw(folder / "damaged.pth", bytes);
        try {
            read_pickled_tensors(folder / "damaged.pth");
        } catch (const Error& error) {
            EXPECT_EQ(error.kind(), ErrorKind::format) << error.what();
            ++refused;
        }
    }
    EXPECT_GT(refused, kTries / 4);
}

}  // namespace
}  // namespace ether::io
