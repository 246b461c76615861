// The boundary to the tokenizer: tokenizer.json NUL text NUL second text. Where the first part is empty, a
// fixture's.
#include "ether/text/tokenizer.h"

#include "ether/core/utf8.h"
#include "fuzz.h"

namespace ether {
namespace {

void use(const text::Tokenizer& tokenizer, const std::string& text, const std::string& pair) {
    for (const int64_t max_length : {0, 5})
        for (const bool paired : {false, true}) {
            const std::vector<std::string> texts = {text}, pairs = {pair};
            const auto encoded = tokenizer.encode_batch(
                texts, paired ? std::span(pairs) : std::span<const std::string>(), max_length);
            ETHER_ASSERT(encoded.size() == 1 && encoded[0].ids.size() == encoded[0].type_ids.size());
            ETHER_ASSERT(max_length == 0 || encoded[0].ids.size() <= static_cast<size_t>(max_length));
            ETHER_ASSERT(find_invalid_utf8(tokenizer.decode(encoded[0].ids, paired)) == std::string::npos);
        }
}

void read(const fuzz::Folder& folder, std::string_view bytes) {
    const auto json = fuzz::next_part(bytes);
    const std::string text(fuzz::next_part(bytes)), pair(bytes);
    static const auto fixture = text::Tokenizer::load(fuzz::kModels / "bert");
    if (json.empty()) return use(fixture, text, pair);
    folder.write("tokenizer.json", json);
    use(text::Tokenizer::load(folder.path()), text, pair);
}

}  // namespace
}  // namespace ether

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    static const ether::fuzz::Folder folder;
    return ether::fuzz::expect_an_answer([&] { ether::read(folder, ether::fuzz::view(data, size)); });
}
