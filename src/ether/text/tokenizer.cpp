#include "ether/text/tokenizer.h"

#include <ether_text.h>

#include <limits>
#include <nlohmann/json.hpp>

#include "ether/core/error.h"
#include "ether/core/parallel.h"
#include "ether/core/utf8.h"
#include "ether/io/file.h"
#include "ether/io/json_reader.h"
#include "ether/text/boundary.h"

namespace ether::text {
namespace {

namespace fs = std::filesystem;

std::optional<io::JsonObject> load_if_there(const fs::path& path) {
    if (!io::has_entry(path)) return std::nullopt;
    return io::JsonObject::load(path);
}

// A special token stands there as a string, or as an object with its properties.
std::string special_token(const std::optional<io::JsonObject>& config, const std::string& key) {
    if (!config || !config->has(key)) return "";
    if (config->document().at(key).is_object()) return config->object(key).get<std::string>("content");
    return config->get<std::string>(key);
}

// The default template: a string, or one of a list of {name, template}.
std::optional<std::string> find_chat_template(const fs::path& folder,
                                              const std::optional<io::JsonObject>& config) {
    const fs::path file = folder / "chat_template.jinja";
    if (io::has_entry(file)) return io::read_text_file(file);
    if (!config || !config->has("chat_template")) return std::nullopt;
    const auto& value = config->document().at("chat_template");
    if (!value.is_array()) return config->get<std::string>("chat_template");
    for (const auto& entry : value) {
        const io::JsonObject named(entry, config->name() + ": chat_template");
        if (named.get<std::string>("name") == "default") return named.get<std::string>("template");
    }
    return std::nullopt;
}

std::vector<EtherText> borrow_all(std::span<const std::string> texts) {
    std::vector<EtherText> out;
    out.reserve(texts.size());
    for (const std::string& text : texts) out.push_back(borrow(text));
    return out;
}

}  // namespace

void Tokenizer::Free::operator()(EtherTokenizer* handle) const { ether_tokenizer_free(handle); }

Tokenizer Tokenizer::load(const fs::path& model_dir, const EmbeddingRows& rows) {
    const fs::path path = model_dir / "tokenizer.json";
    if (!io::has_entry(path))
        fail(ErrorKind::model,
             "{0}: holds no tokenizer.json; where it has a tokenizer's other files: python -c \"from "
             "transformers import AutoTokenizer; "
             "AutoTokenizer.from_pretrained('{0}').save_pretrained('{0}')\"",
             model_dir.string());
    const auto config = load_if_there(model_dir / "tokenizer_config.json");
    const auto side = config ? config->get_or<std::string>("truncation_side", "right") : "right";
    if (side != "right" && side != "left")
        fail(ErrorKind::model, "{}: key \"truncation_side\" is \"{}\", expected \"right\" or \"left\"",
             config->name(), printable(side));
    const std::string json = io::read_text_file(path);

    Tokenizer tokenizer(path.string(), rows);
    EtherString error{};
    tokenizer.handle_.reset(ether_tokenizer_load(borrow(tokenizer.name_), borrow(json),
                                                 static_cast<size_t>(num_threads()), side == "left", &error));
    if (!tokenizer.handle_)
        fail(ErrorKind::format, "{}: not a tokenizer that can be read: {}", tokenizer.name_, take(error));

    const auto map = load_if_there(model_dir / "special_tokens_map.json");
    const auto special = [&](const std::string& key) {
        const std::string token = special_token(config, key);
        return token.empty() ? special_token(map, key) : token;
    };
    tokenizer.eos_token_ = special("eos_token");
    tokenizer.pad_token_ = special("pad_token");
    tokenizer.bos_token_ = special("bos_token");
    tokenizer.chat_template_ = find_chat_template(model_dir, config);
    if (tokenizer.vocab_size() > rows.ids)
        fail(ErrorKind::model,
             "{}: has {} tokens, but the model's embedding only {}; they do not belong together",
             tokenizer.name_, tokenizer.vocab_size(), rows.ids);
    return tokenizer;
}

std::vector<Encoding> Tokenizer::encode_batch(std::span<const std::string> texts,
                                              std::span<const std::string> pairs, int64_t max_length,
                                              bool add_special_tokens) const {
    ETHER_ASSERT(pairs.empty() || pairs.size() == texts.size());
    if (max_length < 0)
        fail(ErrorKind::usage, "max_length: expected 0 (no limit) or more, got {}", max_length);

    const auto borrowed_texts = borrow_all(texts), borrowed_pairs = borrow_all(pairs);
    EtherEncodings encoded{};
    EtherString error{};
    if (!ether_tokenizer_encode(handle_.get(), borrowed_texts.data(),
                                pairs.empty() ? nullptr : borrowed_pairs.data(), texts.size(),
                                static_cast<size_t>(max_length), add_special_tokens, &encoded, &error))
        fail(ErrorKind::data, "tokenizer {}: {}", name_, take(error));

    const std::unique_ptr<EtherEncodings, void (*)(EtherEncodings*)> owner(
        &encoded, [](EtherEncodings* held) { ether_encodings_free(*held); });
    std::vector<Encoding> out(encoded.count);
    for (size_t i = 0; i < encoded.count; ++i) {
        const size_t begin = encoded.offsets[i], end = encoded.offsets[i + 1];
        out[i].ids.assign(encoded.ids + begin, encoded.ids + end);
        out[i].type_ids.assign(encoded.type_ids + begin, encoded.type_ids + end);
        out[i].truncated = encoded.truncated[i];
        check_fits(out[i].ids, rows_.ids, "token id");
        check_fits(out[i].type_ids, rows_.types, "token type");
    }
    return out;
}

void Tokenizer::check_fits(std::span<const int64_t> values, int64_t rows, const char* what) const {
    for (const int64_t value : values)
        if (value >= rows)
            fail(ErrorKind::model,
                 "{}: gives the {} {}, but the model's embedding has only {}; they do not belong together",
                 name_, what, value, rows);
}

std::string Tokenizer::decode(std::span<const int64_t> ids, bool skip_special) const {
    std::vector<uint32_t> narrow;
    narrow.reserve(ids.size());
    for (int64_t id : ids) {
        if (id < 0 || id > std::numeric_limits<uint32_t>::max())
            fail(ErrorKind::data, "tokenizer {}: {} is not a token id", name_, id);
        narrow.push_back(static_cast<uint32_t>(id));
    }
    EtherString text{}, error{};
    if (!ether_tokenizer_decode(handle_.get(), narrow.data(), narrow.size(), skip_special, &text, &error))
        fail(ErrorKind::data, "tokenizer {}: {}", name_, take(error));
    return take(text);
}

std::optional<int64_t> Tokenizer::eos_id() const {
    const auto id = id_of(eos_token_);
    if (!id && !eos_token_.empty())
        fail(ErrorKind::model,
             "{}: has no token \"{}\", which the model's other files call the end of a text (eos_token)",
             name_, printable(eos_token_));
    if (id) check_fits({{*id}}, rows_.ids, "token id");
    return id;
}

int64_t Tokenizer::vocab_size() const {
    return static_cast<int64_t>(ether_tokenizer_vocab_size(handle_.get()));
}

std::optional<int64_t> Tokenizer::token_id(const std::string& token) const {
    const int64_t id = ether_tokenizer_token_id(handle_.get(), borrow(token));
    return id < 0 ? std::nullopt : std::optional(id);
}

}  // namespace ether::text
