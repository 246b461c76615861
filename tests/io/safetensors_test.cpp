#include "ether/io/safetensors.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>

#include <cstring>
#include <optional>

#include "io/test_files.h"

namespace ether::io {
namespace {

using test::TempFolder;
using test::write_raw;

// A file with this header and this many bytes of data, all 1; `length` lies about the header's length.
std::string raw_file(const std::string& header, size_t data_bytes, std::optional<uint64_t> length = {}) {
    const uint64_t value = length.value_or(header.size());
    std::string bytes(8, '\0');
    std::memcpy(bytes.data(), &value, 8);
    return bytes + header + std::string(data_bytes, '\1');
}

SafetensorsFile open_raw(const TempFolder& folder, const std::string& bytes) {
    write_raw(folder / "m.safetensors", bytes);
    return SafetensorsFile(folder / "m.safetensors");
}

bool same_bytes(const at::Tensor& a, const at::Tensor& b) {
    return a.scalar_type() == b.scalar_type() && a.sizes() == b.sizes() &&
           (a.nbytes() == 0 ||
            std::memcmp(a.const_data_ptr(), b.contiguous().const_data_ptr(), a.nbytes()) == 0);
}

NamedTensors one_of_each_dtype() {
    NamedTensors tensors;
    for (const at::ScalarType type :
         {at::kDouble, at::kFloat, at::kHalf, at::kBFloat16, at::kComplexFloat, at::kLong, at::kInt,
          at::kShort, at::kChar, at::kByte, at::kBool, at::kUInt16, at::kUInt32, at::kUInt64,
          at::kFloat8_e4m3fn, at::kFloat8_e5m2})
        tensors.emplace_back(std::string("tensor.") + at::toString(type),
                             at::arange(15, at::kFloat).reshape({3, 5}).to(type));
    return tensors;
}

TEST(Safetensors, RoundTripOfEveryDtype) {
    TempFolder folder;
    NamedTensors tensors = one_of_each_dtype();
    tensors.emplace_back("scalar", at::full({}, 2.5, at::kFloat));
    tensors.emplace_back("empty", at::zeros({0, 4}, at::kLong));
    tensors.emplace_back("transposed", at::arange(6, at::kInt).reshape({2, 3}).t());
    tensors.emplace_back("quote \" slash \\ \xc3\xa9 \n", at::ones({1}, at::kByte));
    write_safetensors(folder / "m", tensors, {{"format", "pt"}, {"note", "a \"b\""}});
    EXPECT_EQ(folder.count(), 1);
    const SafetensorsFile file(folder / "m");
    EXPECT_EQ(file.names().size(), tensors.size());
    EXPECT_EQ(file.metadata().at("note"), "a \"b\"");
    for (const auto& [name, tensor] : tensors) {
        ASSERT_TRUE(file.contains(name)) << name;
        EXPECT_TRUE(same_bytes(file.tensor(name), tensor)) << name;
    }
}

TEST(Safetensors, BytesDependOnNamesAndValuesAlone) {
    TempFolder folder;
    NamedTensors tensors = one_of_each_dtype();
    write_safetensors(folder / "a", tensors, {{"x", "1"}, {"y", "2"}});
    std::reverse(tensors.begin(), tensors.end());
    write_safetensors(folder / "b", tensors, {{"y", "2"}, {"x", "1"}});
    EXPECT_EQ(test::read_raw(folder / "a"), test::read_raw(folder / "b"));
    tensors[0].second = tensors[0].second.clone().zero_();
    write_safetensors(folder / "b", tensors, {{"y", "2"}, {"x", "1"}});
    EXPECT_NE(test::read_raw(folder / "a"), test::read_raw(folder / "b"));
}

TEST(Safetensors, WritesTheReferenceLayout) {
    TempFolder folder;
    write_safetensors(folder / "a", {{"b", at::ones({1, 2}, at::kByte)}, {"a", at::ones({1}, at::kFloat)}},
                      {{"format", "pt"}});
    const std::string header = R"({"__metadata__":{"format":"pt"},)"
                               R"("a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
                               R"("b":{"dtype":"U8","shape":[1,2],"data_offsets":[4,6]}})";
    const std::string padded = header + std::string((8 - header.size() % 8) % 8, ' ');
    EXPECT_EQ(test::read_raw(folder / "a"), raw_file(padded, 0) + std::string("\0\0\x80\x3f\1\1", 6));
    write_safetensors(folder / "none", {});
    EXPECT_EQ(test::read_raw(folder / "none"), raw_file("{}      ", 0));
    EXPECT_TRUE(SafetensorsFile(folder / "none").names().empty());
}

TEST(Safetensors, RefusesToWrite) {
    TempFolder folder;
    const at::Tensor one = at::ones({1});
    EXPECT_FAILS(format, "tensor \"a\": the name is taken",
                 write_safetensors(folder / "m", {{"a", one}, {"a", one}}));
    EXPECT_FAILS(format, "the name is taken", write_safetensors(folder / "m", {{"__metadata__", one}}));
    EXPECT_FAILS(format, "is not UTF-8", write_safetensors(folder / "m", {{"\xff", one}}));
    EXPECT_FAILS(format, "is not UTF-8", write_safetensors(folder / "m", {{"a", one}}, {{"k", "\xff"}}));
    EXPECT_FAILS(format, "no dtype for ComplexDouble",
                 write_safetensors(folder / "m", {{"a", one.to(at::kComplexDouble)}}));
    EXPECT_FAILS(file, "cannot create", write_safetensors(folder / "none/m", {{"a", one}}));
    EXPECT_EQ(folder.count(), 0);
}

TEST(Safetensors, TensorsAreOnTheMapAndKeepIt) {
    TempFolder folder;
    write_safetensors(folder / "m", {{"a", at::arange(4, at::kFloat)}});
    at::Tensor first, second;
    {
        const SafetensorsFile file(folder / "m");
        first = file.tensor("a");
        second = file.tensor("a");
    }
    std::filesystem::remove(folder / "m");
    EXPECT_EQ(first.const_data_ptr(), second.const_data_ptr());
    EXPECT_TRUE(at::equal(first, at::arange(4, at::kFloat)));
}

TEST(Safetensors, CopiesMisalignedData) {
    TempFolder folder;
    // The header's length is odd, so nothing in the data is aligned.
    const SafetensorsFile file =
        open_raw(folder, raw_file(R"({"a":{"dtype":"I32","shape":[2],"data_offsets":[0,8]}} )", 8));
    const at::Tensor tensor = file.tensor("a");
    EXPECT_EQ(reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 4, 0u);
    EXPECT_TRUE(at::equal(tensor, at::full({2}, 0x01010101, at::kInt)));
}

TEST(Safetensors, KnowsDtypesThatItCannotRead) {
    TempFolder folder;
    const SafetensorsFile file =
        open_raw(folder, raw_file(R"({"a":{"dtype":"F8_E8M0","shape":[2],"data_offsets":[0,2]},)"
                                  R"("b":{"dtype":"F4","shape":[2,3],"data_offsets":[2,5]},)"
                                  R"("c":{"dtype":"F6_E2M3","shape":[4],"data_offsets":[5,8]}})",
                                  8));
    EXPECT_EQ(file.info("b").bytes, 3u);
    EXPECT_FAILS(model, "tensor \"a\": its dtype F8_E8M0 cannot be read", file.tensor("a"));
    EXPECT_FAILS(model, "tensor \"b\": its dtype F4 cannot be read", file.tensor("b"));
    EXPECT_FAILS(format, "does not fill whole bytes",
                 open_raw(folder, raw_file(R"({"b":{"dtype":"F4","shape":[3],"data_offsets":[0,2]}})", 2)));
}

TEST(Safetensors, WeightsAreFloats) {
    TempFolder folder;
    write_safetensors(folder / "m", one_of_each_dtype());
    const SafetensorsFile file(folder / "m");
    for (const std::string& name : file.names()) {
        const auto dtype = file.info(name).dtype;
        if (dtype == "F64" || dtype == "F32" || dtype == "F16" || dtype == "BF16")
            EXPECT_TRUE(same_bytes(file.weight(name), file.tensor(name))) << dtype;
        else
            EXPECT_FAILS(model, "its dtype is " + dtype + ", expected F32", file.weight(name));
    }
}

TEST(Safetensors, RefusesABadBool) {
    TempFolder folder;
    const std::string header = R"({"a":{"dtype":"BOOL","shape":[2],"data_offsets":[0,2]}})";
    EXPECT_TRUE(at::equal(open_raw(folder, raw_file(header, 2)).tensor("a"), at::ones({2}, at::kBool)));
    EXPECT_FAILS(format, "a BOOL is neither 0 nor 1",
                 open_raw(folder, raw_file(header, 0) + "\1\2").tensor("a"));
}

TEST(Safetensors, NamesTheMissingTensor) {
    TempFolder folder;
    write_safetensors(folder / "m", {{"layer.weight", at::ones({1})}});
    EXPECT_FAILS(model, "m: has no tensor \"layer.wieght\"; did you mean \"layer.weight\"?",
                 SafetensorsFile(folder / "m").tensor("layer.wieght"));
}

TEST(Safetensors, RefusesLyingLengths) {
    TempFolder folder;
    const std::string header = R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})";
    EXPECT_FAILS(format, "it has 0 bytes", open_raw(folder, ""));
    EXPECT_FAILS(format, "it has 7 bytes", open_raw(folder, std::string(7, '\1')));
    EXPECT_FAILS(format, "header's length would be 0", open_raw(folder, raw_file(header, 8, 0)));
    EXPECT_FAILS(format, "cut short: its header has 1000 bytes", open_raw(folder, raw_file(header, 8, 1000)));
    for (const uint64_t length : {uint64_t{100'000'001}, uint64_t{1} << 63, ~uint64_t{0}, ~uint64_t{0} - 7})
        EXPECT_FAILS(format, "would be " + std::to_string(length),
                     open_raw(folder, raw_file(header, 8, length)));
    EXPECT_FAILS(format, "not valid JSON", open_raw(folder, raw_file(header, 8, header.size() - 1)));
    EXPECT_FAILS(format, "the tensors end at byte", open_raw(folder, raw_file(header, 9)));
    EXPECT_FAILS(format, "lie outside", open_raw(folder, raw_file(header, 7)));
}

TEST(Safetensors, EveryTruncationIsAnError) {
    TempFolder folder;
    write_safetensors(folder / "whole", {{"a", at::ones({3})}, {"b", at::ones({2}, at::kByte)}},
                      {{"k", "v"}});
    const std::string whole = test::read_raw(folder / "whole");
    for (size_t size = 0; size < whole.size(); ++size)
        EXPECT_TRUE(test::error_of([&] { open_raw(folder, whole.substr(0, size)); })) << size;
}

TEST(Safetensors, NoDamagedByteCrashes) {
    TempFolder folder;
    write_safetensors(folder / "whole", {{"a", at::ones({3})}, {"b", at::ones({2}, at::kByte)}},
                      {{"k", "v"}});
    const std::string whole = test::read_raw(folder / "whole");
    for (size_t i = 0; i < whole.size(); ++i)
        for (const unsigned char flip : {0x01, 0x04, 0x10, 0x80, 0xff}) {
            std::string damaged = whole;
            damaged[i] = static_cast<char>(static_cast<unsigned char>(damaged[i]) ^ flip);
            try {  // either it is refused, or every tensor can be read to its end
                const SafetensorsFile file = open_raw(folder, damaged);
                for (const std::string& name : file.names()) file.tensor(name).clone();
            } catch (const Error&) {
            }
        }
}

TEST(Safetensors, RefusesLyingHeaders) {
    TempFolder folder;
    struct Case {
        const char* words;
        std::string header;
        size_t data_bytes;
    };
    const std::string big = "9223372036854775807";
    const Case cases[] = {
        {"expected an object, found a list", "[]", 0},
        {"not UTF-8", "{\"\xff\":1}", 0},
        {"nested deeper", std::string(1'000'000, '['), 0},
        {"stands twice",
         R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
         R"("a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})",
         1},
        {"tensor \"a\": expected an object", R"({"a":1})", 0},
        {"\"dtype\" is missing", R"({"a":{"shape":[1],"data_offsets":[0,1]}})", 1},
        {"\"shape\" is missing", R"({"a":{"dtype":"U8","data_offsets":[0,1]}})", 1},
        {"\"data_offsets\" is missing", R"({"a":{"dtype":"U8","shape":[1]}})", 1},
        {"unknown dtype \"F33\"", R"({"a":{"dtype":"F33","shape":[1],"data_offsets":[0,4]}})", 4},
        {"unknown dtype 7", R"({"a":{"dtype":7,"shape":[1],"data_offsets":[0,4]}})", 4},
        {"found -1", R"({"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}})", 1},
        {"found 1.5", R"({"a":{"dtype":"U8","shape":[1.5],"data_offsets":[0,1]}})", 1},
        {"found 9223372036854775808",
         R"({"a":{"dtype":"U8","shape":[9223372036854775808],"data_offsets":[0,1]}})", 1},
        {"found 1.8446744073709552e+19",
         R"({"a":{"dtype":"U8","shape":[18446744073709551616],"data_offsets":[0,1]}})", 1},
        {"more elements than", R"({"a":{"dtype":"U8","shape":[)" + big + R"(],"data_offsets":[0,1]}})", 1},
        {"more elements than", R"({"a":{"dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,0]}})",
         0},
        {"more elements than",
         R"({"a":{"dtype":"F64","shape":[2305843009213693952,8],"data_offsets":[0,0]}})", 0},
        {"more elements than",
         R"({"a":{"dtype":"U8","shape":[0,)" + big + "," + big + R"(],"data_offsets":[0,0]}})", 0},
        {"expected a list of sizes", R"({"a":{"dtype":"U8","shape":1,"data_offsets":[0,1]}})", 1},
        {"expected 2 numbers, found 3", R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1,2]}})", 1},
        {"lie outside", R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[1,0]}})", 1},
        {"lie outside", R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})", 1},
        {"lie outside",
         R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[9223372036854775806,)" + big + "]}}", 1},
        {"takes 4 bytes", R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,5]}})", 5},
        {"overlapping",
         R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
         R"("b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})",
         3},
        {"leaving a hole",
         R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
         R"("b":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}})",
         3},
        {"leaving a hole", R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})", 2},
        {"the tensors end at", R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 2},
        {"the tensors end at", "{}", 1},
        {"\"__metadata__\": key \"k\": expected a string", R"({"__metadata__":{"k":1}})", 0},
        {"\"__metadata__\": expected an object", R"({"__metadata__":"k"})", 0},
    };
    for (const Case& c : cases)
        EXPECT_FAILS(format, c.words, open_raw(folder, raw_file(c.header, c.data_bytes)))
            << c.header.substr(0, 200);
    std::string rank = R"({"a":{"dtype":"U8","shape":[1)";
    for (int i = 0; i < 64; ++i) rank += ",1";
    EXPECT_FAILS(format, "has 65 dimensions",
                 open_raw(folder, raw_file(rank + R"(],"data_offsets":[0,1]}})", 1)));
}

TEST(CheckWritten, ComparesEveryBit) {
    TempFolder folder;
    const NamedTensors tensors = {{"a", at::ones({2, 3})}, {"b", at::zeros({2}, at::kBFloat16)}};
    write_safetensors(folder / "f", tensors);
    check_written(folder / "f", tensors);
    auto other = tensors;
    other[1].second = at::zeros({2}, at::kBFloat16).neg();
    EXPECT_FAILS(file, "\"b\": reads back other values than were written",
                 check_written(folder / "f", other));
    other[1].second = at::zeros({2, 1}, at::kBFloat16);
    EXPECT_FAILS(file, "\"b\": reads back other values", check_written(folder / "f", other));
}

}  // namespace
}  // namespace ether::io
