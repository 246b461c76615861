#include "ether/io/adapter_folder.h"

#include <map>
#include <optional>
#include <system_error>

#include "ether/core/error.h"
#include "ether/core/shell.h"
#include "ether/io/atomic.h"
#include "ether/io/descriptor.h"
#include "ether/io/file.h"
#include "ether/io/json_reader.h"
#include "ether/io/pickle.h"

namespace ether::io {
namespace fs = std::filesystem;
namespace {

constexpr const char* kPickledFile = "adapter_model.bin";

std::string to_text(const nlohmann::json& value) {
    ETHER_ASSERT(value.is_object());
    return value.dump(2) + "\n";
}

void remove_file(const fs::path& path) {
    std::error_code code;
    fs::remove(path, code);
    if (code) fail(ErrorKind::file, "{}: cannot remove: {}", path.string(), code.message());
}

NamedTensors read_tensors(const fs::path& folder, Pickles pickles) {
    if (!has_entry(folder / kAdapterWeightsFile) && has_entry(folder / kPickledFile)) {
        if (pickles == Pickles::read) return read_pickled_tensors(folder / kPickledFile);
        fail(ErrorKind::adapter,
             "{}: holds {} but no {}; pickled weights are read by one verb alone: ether import --model DIR "
             "--adapter {} --out NEW",
             folder.string(), kPickledFile, kAdapterWeightsFile, shell_word(folder.string()));
    }
    if (!has_entry(folder / kAdapterWeightsFile))
        fail(ErrorKind::adapter, "{}: holds {} but no {}", folder.string(), kAdapterConfigFile,
             kAdapterWeightsFile);
    NamedTensors tensors;
    const SafetensorsFile weights(folder / kAdapterWeightsFile);
    // Integers are places of entries (SHiRA's, VB-LoRA's), never values: who asks for values checks.
    constexpr std::array<std::string_view, 4> kPlaces = {"U8", "I16", "I32", "I64"};
    for (const std::string& name : weights.names()) {
        const auto& dtype = weights.info(name).dtype;
        const bool places = std::find(kPlaces.begin(), kPlaces.end(), dtype) != kPlaces.end();
        tensors.emplace_back(name, places ? weights.tensor(name) : weights.weight(name));
    }
    return tensors;
}

}  // namespace

bool has_adapter(const fs::path& folder) {
    return has_entry(folder / kAdapterConfigFile) && has_entry(folder / kAdapterWeightsFile) &&
           has_entry(folder / kEtherFile);
}

AdapterFiles read_adapter(const fs::path& folder, Pickles pickles) {
    std::error_code code;
    const fs::file_status status = fs::status(folder, code);
    if (!fs::exists(status))
        fail(ErrorKind::file, "{}: cannot open the adapter folder: {}", folder.string(),
             code ? code.message() : "it does not exist");
    if (!fs::is_directory(status))
        fail(ErrorKind::adapter, "{}: expected an adapter's folder, found a file", folder.string());
    if (!has_entry(folder / kAdapterConfigFile) && has_entry(folder / kRunFile))
        fail(ErrorKind::adapter,
             "{}: this run has saved no adapter yet; ether train --resume {} goes on with it",
             folder.string(), shell_word(folder.string()));
    if (!has_entry(folder / kAdapterConfigFile) && has_entry(folder / kRunStateFile)) {
        const auto run = (folder / "../..").lexically_normal().string();
        fail(ErrorKind::adapter,
             "{}: holds a run's checkpoint, from which ether train --resume {} goes on; the adapter is in {}",
             folder.string(), shell_word(run), run);
    }
    if (!has_entry(folder / kAdapterConfigFile))
        fail(ErrorKind::adapter,
             "{}: holds no {}, so it is not an adapter's folder or was not written to its end",
             folder.string(), kAdapterConfigFile);
    AdapterFiles files;
    files.config = JsonObject::load(folder / kAdapterConfigFile).document();
    files.tensors = read_tensors(folder, pickles);
    if (has_entry(folder / kEtherFile)) files.ether = JsonObject::load(folder / kEtherFile).document();
    return files;
}

void write_adapter(const fs::path& folder, const AdapterFiles& files) {
    NewFolders folders(folder);
    const std::string config = to_text(files.config);
    const std::string ether = files.ether ? to_text(*files.ether) : "";
    const auto holds = [&](const char* name, const std::string& text) {
        return has_entry(folder / name) ? read_text_file(folder / name) == text : text.empty();
    };
    const bool same = holds(kAdapterConfigFile, config) && holds(kEtherFile, ether);
    // All that can fail comes before what is there is touched.
    AtomicFile weights(folder / kAdapterWeightsFile), config_file(folder / kAdapterConfigFile);
    write_safetensors(weights, files.tensors, {{"format", "pt"}});
    weights.sync();
    std::optional<AtomicFile> ether_file;
    if (files.ether) {
        ether_file.emplace(folder / kEtherFile);
        ether_file->write(ether);
        ether_file->sync();
    }
    config_file.write(config);  // the last: where it is whole, all are, which finish_adapter relies on
    config_file.sync();
    // The same run saving again swaps its tensors in one step and stays whole; any other adapter must not be
    // mixed.
    if (!same) remove_file(folder / kAdapterConfigFile);
    if (!ether_file) remove_file(folder / kEtherFile);
    weights.commit();
    if (ether_file) ether_file->commit();
    config_file.commit();
    folders.keep();
}

void finish_adapter(const fs::path& folder) {
    if (has_entry(folder / kAdapterConfigFile)) return;
    std::map<std::string, fs::path> left;
    std::error_code ignored;
    for (const auto& entry : fs::directory_iterator(folder, ignored)) {
        const auto name = entry.path().filename().string();
        if (final_name(name) != name && entry.is_regular_file(ignored)) left[final_name(name)] = entry.path();
    }
    if (!left.contains(kAdapterConfigFile)) return;
    try {
        JsonObject::load(left[kAdapterConfigFile]);
    } catch (const Error&) {  // the kill came before all was written
        return;
    }
    if (left.contains(kAdapterWeightsFile) && !left.contains(kEtherFile)) remove_file(folder / kEtherFile);
    for (const char* name : {kAdapterWeightsFile, kEtherFile, kAdapterConfigFile}) {
        std::error_code error;
        if (left.contains(name)) fs::rename(left[name], folder / name, error);
        if (error) fail_system(folder / name, "rename into place", error.value());
    }
}

}  // namespace ether::io
