#include "ether/io/hub_cache.h"

#include <algorithm>
#include <cctype>
#include <system_error>

#include "ether/core/error.h"
#include "ether/core/options.h"
#include "ether/core/utf8.h"
#include "ether/io/environment.h"
#include "ether/io/file.h"

namespace ether::io {
namespace fs = std::filesystem;
namespace {

fs::path cache_folder() {
    if (const auto hub = path_variable("HF_HUB_CACHE")) return *hub;
    if (const auto home = path_variable("HF_HOME")) return *home / "hub";
    if (const auto cache = path_variable("XDG_CACHE_HOME")) return *cache / "huggingface" / "hub";
    return path_variable("HOME").value_or(".") / ".cache" / "huggingface" / "hub";
}

// One or more parts between slashes, of letters, digits, '-', '_' and '.', none of them "." or "..": safe to
// append to a folder. At most `max_parts` parts.
bool is_safe_name(std::string_view name, size_t max_parts) {
    for (size_t parts = 1;; ++parts) {
        const std::string_view part = name.substr(0, name.find('/'));
        const bool plain = std::ranges::all_of(part, [](char c) {
            return std::isalnum(static_cast<unsigned char>(c)) || c == '-' || c == '_' || c == '.';
        });
        if (part.empty() || !plain || part == "." || part == ".." || parts > max_parts) return false;
        if (part.size() == name.size()) return true;
        name.remove_prefix(part.size() + 1);
    }
}

std::string trimmed(std::string text) {
    while (!text.empty() && std::isspace(static_cast<unsigned char>(text.back()))) text.pop_back();
    return text;
}

// The cached snapshot of what has that hub name; `kind` is "model" or "adapter".
fs::path cached_snapshot(const std::string& given, const char* kind) {
    std::error_code code;
    const size_t at = given.find('@');
    const std::string name = given.substr(0, at);
    const std::string revision = at == std::string::npos ? "main" : given.substr(at + 1);
    if (!is_safe_name(name, 2) || !is_safe_name(revision, 8))
        fail(ErrorKind::file, "{}: no such folder, and not a hub name (org/name or org/name@revision)",
             printable(given, 200));

    std::string entry = "models--" + name;
    if (const size_t slash = entry.find('/'); slash != std::string::npos) entry.replace(slash, 1, "--");
    const fs::path cached = cache_folder() / entry;
    const fs::path reference = cached / "refs" / revision;
    fs::path snapshot = cached / "snapshots" / revision;  // where the revision is a commit hash
    if (fs::is_regular_file(reference, code)) {
        const std::string commit = trimmed(read_text_file(reference, 4096));
        if (!is_safe_name(commit, 1))
            fail(ErrorKind::format, "{}: expected a commit hash, found \"{}\"", reference.string(),
                 printable(commit));
        snapshot = cached / "snapshots" / commit;
    }
    if (fs::is_directory(snapshot, code)) return snapshot;
    fail(ErrorKind::file,
         "{}: no such {}; looked for the folder {}, then in the hub cache for {} and {}; nothing is "
         "downloaded here: "
         "fetch it first (huggingface-cli download {}) or name its folder",
         given, kind, fs::absolute(given).string(), reference.string(), snapshot.string(), name);
}

bool is_cached(const std::string& name) {
    try {
        cached_snapshot(name, "adapter");
        return true;
    } catch (const Error&) {
        return false;
    }
}

}  // namespace

fs::path resolve_model(const std::string& model) {
    if (model.empty())
        fail(ErrorKind::usage, "model: expected a folder or a hub name, found an empty string");
    std::error_code code;
    const fs::file_status status = fs::status(model, code);
    if (fs::is_directory(status)) return model;
    if (fs::exists(status))
        fail(ErrorKind::file,
             "{}: expected a model folder, found a file; name the folder that holds config.json", model);
    if (code && code != std::errc::no_such_file_or_directory && code != std::errc::not_a_directory)
        fail(ErrorKind::file, "{}: cannot open the model folder: {}", printable(model, 200), code.message());
    return cached_snapshot(model, "model");
}

std::vector<AdapterName> split_adapters(const std::string& text) {
    const auto is_there = [](const std::string& path) {
        std::error_code ignored;  // whoever opens it says what is wrong
        return fs::exists(path, ignored);
    };
    std::vector<AdapterName> names;
    for (const auto& part : is_there(text) ? std::vector{text} : split_list(text)) {
        const auto at = part.rfind('@');
        const auto folder = part.substr(0, at);
        // Behind a folder stands a weight, well written or not; behind a hub's name what looks like one.
        const bool has_weight =
            at != std::string::npos && at + 1 < part.size() &&
            (is_there(folder) || part.find_first_not_of("+-.0123456789e", at + 1) == std::string::npos);
        if (has_weight && !is_there(part) && !is_cached(part))
            names.push_back({folder, part.substr(at + 1)});
        else
            names.push_back({part, ""});
    }
    return names;
}

fs::path resolve_adapter(const std::string& adapter) {
    std::error_code code;
    const fs::file_status status = fs::status(adapter, code);
    const bool nothing_there = code == std::errc::no_such_file_or_directory;
    if (!nothing_there || fs::exists(status)) return adapter;
    return cached_snapshot(adapter, "adapter");
}

}  // namespace ether::io
