// Finds a model's or an adapter's folder by path, or by its hub name in the cache that Hugging Face's tools
// fill. Nothing is ever downloaded. Reads the environment, so not while another thread changes it.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace ether::io {

// `model` is an existing folder, or `name`, `org/name` or `org/name@revision` (default revision: main) in the
// cache at $HF_HUB_CACHE, else $HF_HOME/hub, else $XDG_CACHE_HOME/huggingface/hub, else
// ~/.cache/huggingface/hub. A revision is a branch, a tag or a full commit hash. A folder of that path wins
// over the cache. Not found, or a file: an Error that says where it looked.
std::filesystem::path resolve_model(const std::string& model);

// Likewise for an adapter; but whatever lies at that path is returned, for its reader to judge.
std::filesystem::path resolve_adapter(const std::string& adapter);

struct AdapterName {
    std::string folder, weight;  // weight: what stood behind the @, if anything
};

// Several adapters as a command line names them, "a,b@0.5". A folder's name may hold an @ or a comma; and
// org/name@2.0 is a revision where the cache has one.
std::vector<AdapterName> split_adapters(const std::string& text);

}  // namespace ether::io
