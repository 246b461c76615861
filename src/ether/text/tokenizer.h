// The tokenizer of a Hugging Face model folder: text to token ids and back, as transformers does it.
// Movable; const methods may be called from several threads at once. Failures are Errors that name the file.
#pragma once

#include <cstdint>
#include <filesystem>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

struct EtherTokenizer;

namespace ether::text {

struct Encoding {
    std::vector<int64_t> ids, type_ids;  // same length; type_ids: 0 first text, 1 second text of a pair
    bool truncated = false;
};

// What a model has embeddings for: ids and types from 0 to one less.
struct EmbeddingRows {
    int64_t ids = std::numeric_limits<int64_t>::max(), types = std::numeric_limits<int64_t>::max();
};

class Tokenizer {
  public:
    // Reads tokenizer.json, and for special tokens and the chat template tokenizer_config.json,
    // special_tokens_map.json and chat_template.jinja where they exist. A tokenizer that does not fit the
    // rows is an error here, or in encode_batch where it is ids and types themselves that go beyond.
    static Tokenizer load(const std::filesystem::path& model_dir, const EmbeddingRows& rows = {});

    // Encodes each text, or each pair of texts if `pairs` is not empty (then of the same size). Texts are
    // UTF-8 and may hold NULs. max_length counts special tokens; 0 means no limit. A pair that is too long
    // loses tokens of its longer text first. Nothing is padded.
    std::vector<Encoding> encode_batch(std::span<const std::string> texts, std::span<const std::string> pairs,
                                       int64_t max_length, bool add_special_tokens = true) const;

    // The text of `ids`; unknown ids are skipped, a negative one is an error.
    std::string decode(std::span<const int64_t> ids, bool skip_special) const;

    int64_t vocab_size() const;  // added tokens included
    std::optional<int64_t> token_id(const std::string& token) const;

    // Absent where the model names none; an error where it names one that is no token.
    std::optional<int64_t> eos_id() const;
    std::optional<int64_t> pad_id() const { return id_of(pad_token_); }
    std::optional<int64_t> bos_id() const { return id_of(bos_token_); }

    // Texts of the special tokens ("" where there is none) and the Jinja source, for render_chat.
    const std::string& eos_token() const { return eos_token_; }
    const std::string& bos_token() const { return bos_token_; }
    const std::optional<std::string>& chat_template() const { return chat_template_; }

  private:
    struct Free {
        void operator()(EtherTokenizer* handle) const;
    };

    Tokenizer(std::string name, const EmbeddingRows& rows) : name_(std::move(name)), rows_(rows) {}
    void check_fits(std::span<const int64_t> values, int64_t rows, const char* what) const;
    std::optional<int64_t> id_of(const std::string& token) const {
        return token.empty() ? std::nullopt : token_id(token);
    }

    std::string name_;  // the path of tokenizer.json, for errors
    EmbeddingRows rows_;
    std::unique_ptr<EtherTokenizer, Free> handle_;
    std::string eos_token_, pad_token_, bos_token_;
    std::optional<std::string> chat_template_;
};

}  // namespace ether::text
