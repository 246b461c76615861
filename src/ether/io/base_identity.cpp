#include "ether/io/base_identity.h"

#include <sys/stat.h>

#include <nlohmann/json.hpp>

#include "ether/core/error.h"
#include "ether/core/hash.h"
#include "ether/io/file.h"

namespace ether::io {
namespace {

// What transformers writes anew when it saves the same model.
constexpr const char* kUnimportantKeys[] = {"_name_or_path", "dtype", "torch_dtype", "transformers_version",
                                            "use_cache"};

BaseIdentity identity_of(const Checkpoint& checkpoint) {
    auto config = checkpoint.config().document();
    for (const char* key : kUnimportantKeys) config.erase(key);
    const auto tokenizer = checkpoint.path() / kTokenizerFile;
    const std::string kind(kFingerprintKind);
    return {checkpoint.fingerprint(), kind + hash_of(config.dump()),
            has_entry(tokenizer) ? kind + hash_of(read_text_file(tokenizer)) : ""};
}

// Another one after each write. The time of the last write alone can be set back; that of the last change of
// the file's entry cannot.
std::string stamp_of(int file) {
    struct stat status {};
    if (::fstat(file, &status) != 0) return "";
    return fmt::format("{} {}.{} {}.{}", status.st_size, status.st_mtim.tv_sec, status.st_mtim.tv_nsec,
                       status.st_ctim.tv_sec, status.st_ctim.tv_nsec);
}

}  // namespace

BaseWatch::BaseWatch(Checkpoint checkpoint) : checkpoint_(std::move(checkpoint)) {
    for (const auto& path : checkpoint_.weight_files())
        files_.push_back(std::make_shared<const Descriptor>(path, O_RDONLY));
    stamps_ = stamps();
}

const BaseIdentity& BaseWatch::identity() {
    if (!identity_.weights.empty()) return identity_;
    const auto read = identity_of(checkpoint_);
    if (stamps() != stamps_) fail_written();
    return identity_ = read;
}

void BaseWatch::check() {
    auto now = stamps();
    if (now == stamps_) return;
    if (checkpoint_.fingerprint() != identity_.weights) fail_written();
    stamps_ = std::move(now);
}

void BaseWatch::fail_written() const {
    fail(
        ErrorKind::file,
        "{}: the model's weights were written to while they were in use, so what was computed since the last "
        "save cannot be trusted and is not saved; put the files back and start again, a run with --resume",
        checkpoint_.path().string());
}

std::vector<std::string> BaseWatch::stamps() const {
    std::vector<std::string> stamps;
    for (const auto& file : files_) stamps.push_back(stamp_of(file->get()));
    return stamps;
}

}  // namespace ether::io
