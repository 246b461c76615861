#include "ether/io/adapter_description.h"

#include <filesystem>

#include "ether/core/error.h"

namespace ether::io {

std::optional<JsonObject> description_of(const AdapterFiles& files, const BaseIdentity& base,
                                         const AdapterUse& use, std::vector<std::string>& notes) {
    if (!files.ether) {
        notes.push_back(fmt::format(
            "{} has no ether.json, so nobody can tell whether it belongs to this base model", use.adapter));
        return {};
    }
    JsonObject ether(*files.ether, (std::filesystem::path(use.adapter) / kEtherFile).string());
    if (const auto format = ether.get_or<int64_t>("format", 1); format != 1)
        fail(ErrorKind::adapter, "{}: format {} is newer than this program, which knows 1", ether.name(),
             format);
    const auto fingerprint = ether.get_or<std::string>("base_fingerprint", "");
    const bool known = fingerprint.starts_with(kFingerprintKind);
    if (!known)
        notes.push_back(
            fmt::format("{} has no fingerprint of its base model that this program knows, so nobody can tell "
                        "whether it belongs to this one",
                        ether.name()));
    if (known && fingerprint != base.weights) {
        if (!use.force)
            fail(ErrorKind::adapter,
                 "{}: the adapter was trained on another base model than {} (fingerprints {} and {}); "
                 "--force uses it all the same",
                 use.adapter, use.model, fingerprint, base.weights);
        notes.push_back(fmt::format("{} was trained on another base model than {}", use.adapter, use.model));
    }
    const auto compare = [&](const char* file, const char* key, const std::string& now) {
        const auto then = ether.get_or<std::string>(key, "");
        if (then.starts_with(kFingerprintKind) && !now.empty() && then != now)
            notes.push_back(
                fmt::format("{}/{} is not the one that {} was trained with, so its results may differ",
                            use.model, file, use.adapter));
    };
    compare("config.json", "base_config", base.config);
    compare(kTokenizerFile, "base_tokenizer", base.tokenizer);
    return ether;
}

}  // namespace ether::io
