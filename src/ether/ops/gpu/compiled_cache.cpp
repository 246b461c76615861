#include "ether/ops/gpu/compiled_cache.h"

#include <filesystem>

#include "ether/core/error.h"
#include "ether/core/hash.h"
#include "ether/io/atomic.h"
#include "ether/io/environment.h"
#include "ether/io/file.h"

namespace ether::ops {
namespace {

namespace fs = std::filesystem;

constexpr size_t kDigits = 32;  // of a hash

std::optional<fs::path> folder() {
    if (const auto own = io::path_variable("ETHER_CACHE")) return *own / "kernels";
    if (const auto cache = io::path_variable("XDG_CACHE_HOME")) return *cache / "ether" / "kernels";
    if (const auto home = io::path_variable("HOME")) return *home / ".cache" / "ether" / "kernels";
    return std::nullopt;
}

}  // namespace

// A file holds its contents' hash in front of them.
std::string cached_code(const std::string& key, const std::function<std::string()>& compile) {
    const auto place = folder();
    if (!place) return compile();
    const auto path = *place / hash_of(key);
    try {
        const auto file = io::read_text_file(path);
        if (file.size() > kDigits && file.compare(0, kDigits, hash_of(file.substr(kDigits))) == 0)
            return file.substr(kDigits);
    } catch (const Error&) {  // not there yet, most often
    }
    const auto code = compile();
    try {
        std::error_code failed;
        fs::create_directories(*place, failed);
        if (!failed) io::write_file_atomic(path, hash_of(code) + code);
    } catch (const Error&) {  // a full disk, say
    }
    return code;
}

}  // namespace ether::ops
