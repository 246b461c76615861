#include "ether/train/run_state.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "ether/core/error.h"
#include "ether/core/hash.h"
#include "ether/io/adapter_folder.h"
#include "ether/io/atomic.h"
#include "ether/io/json_reader.h"
#include "ether/io/safetensors.h"

namespace ether::train {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kParameter = "parameter/", kOptimizer = "optimizer/";

constexpr const char* kValuesFile = "state.safetensors";
constexpr const char* kHash = "state_hash";  // in the run state, of the values and all else there

constexpr std::string_view kPrefix = "step-";
constexpr size_t kDigits = 9;

std::string name_of(int64_t step) { return fmt::format("{}{:0{}}", kPrefix, step, kDigits); }

nlohmann::json to_json(const RunProgress& progress) {
    auto logs = nlohmann::json::object();
    for (const auto& [name, mark] : progress.logs) logs[name] = {{"bytes", mark.bytes}, {"hash", mark.hash}};
    return {{"step", progress.step},
            {"best_score", progress.best_score ? nlohmann::json(*progress.best_score) : nlohmann::json()},
            {"best_step", progress.best_step},
            {"evaluations_without_best", progress.evaluations_without_best},
            {"evaluation_due", progress.evaluation_due},
            {"finished", progress.finished},
            {"stopped_early", progress.stopped_early},
            {"loss", progress.loss},
            {"machine", progress.machine},
            {"piece_tokens", progress.piece_tokens},
            {"inputs", progress.inputs},
            {"settings", progress.settings},
            {"logs", logs}};
}

// A number of steps, bytes and the like.
int64_t count(const io::JsonObject& json, const std::string& key) {
    const auto value = json.get<int64_t>(key);
    if (value < 0)
        fail(ErrorKind::format, "{}: key \"{}\" is {}, expected at least 0", json.name(), key, value);
    return value;
}

std::map<std::string, std::string> texts(const io::JsonObject& json, const std::string& key) {
    std::map<std::string, std::string> result;
    const auto object = json.object(key);
    for (const auto& name : object.keys()) result[name] = object.get<std::string>(name);
    return result;
}

RunProgress from_json(const io::JsonObject& json) {
    RunProgress progress;
    progress.step = count(json, "step");
    if (json.has("best_score")) progress.best_score = json.get<double>("best_score");
    progress.best_step = count(json, "best_step");
    if (progress.best_step > progress.step)
        fail(ErrorKind::format, "{}: key \"best_step\" is {}, expected at most the {} of \"step\"",
             json.name(), progress.best_step, progress.step);
    progress.evaluations_without_best = count(json, "evaluations_without_best");
    progress.evaluation_due = json.get_or<bool>("evaluation_due", false);
    progress.finished = json.get<bool>("finished");
    progress.stopped_early = json.get_or<bool>("stopped_early", false);
    progress.loss = json.get_or<double>("loss", 0);
    progress.machine = json.get<std::string>("machine");
    if (json.has("piece_tokens")) progress.piece_tokens = count(json, "piece_tokens");
    progress.inputs = texts(json, "inputs");
    progress.settings = texts(json, "settings");
    const auto logs = json.object("logs");
    for (const auto& name : logs.keys()) {
        const auto mark = logs.object(name);
        progress.logs[name] = {count(mark, "bytes"), mark.get<std::string>("hash")};
    }
    return progress;
}

// Of names, shapes, dtypes and values, in the order of names, and of the run state but the hash itself.
std::string hash_of(io::NamedTensors tensors, nlohmann::json state) {
    std::ranges::sort(tensors, {}, [](const auto& entry) { return entry.first; });
    Hash hash;
    state.erase(kHash);
    hash.add(state.dump());
    for (const auto& [name, tensor] : tensors) {
        const auto data = tensor.cpu().contiguous();
        hash.add(name);
        hash.add(io::dtype_name(data.scalar_type()));
        hash.add(data.sizes().data(), data.sizes().size() * sizeof(int64_t));
        hash.add(data.const_data_ptr(), data.nbytes());
    }
    return hash.hex();
}

void load_values(const fs::path& path, const io::JsonObject& state, const nn::ParameterStore& parameters,
                 AdamW& optimizer) {
    const at::NoGradGuard no_grad;
    const io::SafetensorsFile file(path);
    io::NamedTensors tensors, optimizer_state;
    for (const auto& name : file.names()) {
        const auto& [key, tensor] = tensors.emplace_back(name, file.tensor(name));
        if (key.starts_with(kOptimizer)) optimizer_state.emplace_back(key.substr(kOptimizer.size()), tensor);
    }
    if (hash_of(std::move(tensors), state.document()) != state.get<std::string>(kHash))
        fail(ErrorKind::format, "{}, or {} beside it: holds other values than were written", path.string(),
             io::kRunStateFile);
    std::vector<std::pair<at::Tensor, at::Tensor>> copies;
    for (const auto& parameter : parameters.all()) {
        const auto saved = file.tensor(std::string(kParameter) + parameter.name);
        if (saved.sizes() != parameter.value.sizes() || saved.scalar_type() != parameter.value.scalar_type())
            fail(ErrorKind::format, "{}: \"{}\" has another shape or dtype than this run", path.string(),
                 parameter.name);
        copies.emplace_back(parameter.value, saved);
    }
    optimizer.load_state(optimizer_state);
    for (auto& [value, saved] : copies) value.copy_(saved);
}

}  // namespace

bool is_checkpoint_name(const std::string& name) {
    return name.starts_with(kPrefix) && name.size() == kPrefix.size() + kDigits &&
           name.find_first_not_of("0123456789", kPrefix.size()) == std::string::npos;
}

std::vector<fs::path> RunState::all() const {
    std::vector<fs::path> found;
    std::error_code ignored;
    for (const auto& entry : fs::directory_iterator(folder_, ignored)) {
        const auto name = entry.path().filename().string();
        if (is_checkpoint_name(name)) found.push_back(entry.path());
    }
    std::sort(found.begin(), found.end(), std::greater<>());  // numbers are zero-padded
    return found;
}

void RunState::clear() const {
    std::error_code error;
    fs::remove_all(folder_, error);
    if (error)
        fail(ErrorKind::file, "{}: cannot remove old checkpoints: {}", folder_.string(), error.message());
}

std::optional<fs::path> RunState::newest() const {
    const auto found = all();
    return found.empty() ? std::nullopt : std::optional(found.front());
}

void RunState::save(const RunProgress& progress, const nn::ParameterStore& parameters, const AdamW& optimizer,
                    int64_t keep) const {
    io::AtomicFolder folder(folder_ / name_of(progress.step), io::AtomicFolder::Existing::replace);
    io::NamedTensors tensors;
    for (const auto& parameter : parameters.all())
        tensors.emplace_back(std::string(kParameter) + parameter.name, parameter.value.detach());
    for (const auto& [name, tensor] : optimizer.state())
        tensors.emplace_back(std::string(kOptimizer) + name, tensor);
    io::write_safetensors(folder.path() / kValuesFile, tensors);
    auto json = to_json(progress);
    json[kHash] = hash_of(tensors, json);
    io::write_file_atomic(folder.path() / io::kRunStateFile, json.dump(2) + "\n");
    folder.commit();
    remove_old(progress.step, keep);
}

void RunState::remove_old(int64_t step, int64_t keep) const {
    auto found = all();
    std::erase_if(found, [&](const fs::path& folder) { return folder.filename() > name_of(step); });
    for (size_t i = static_cast<size_t>(keep); i < found.size(); ++i) {
        std::error_code ignored;  // an old checkpoint that cannot be removed does no harm
        fs::remove_all(found[i], ignored);
    }
}

RunProgress RunState::load(const nn::ParameterStore& parameters, AdamW& optimizer,
                           const std::function<void(const RunProgress&)>& check,
                           std::vector<std::string>& skipped) const {
    for (const auto& folder : all()) {
        RunProgress progress;
        std::optional<io::JsonObject> state;
        const auto reads = [&](auto&& read) {
            try {
                read();
                return true;
            } catch (const Error& error) {
                skipped.emplace_back(error.what());
                return false;
            }
        };
        if (!reads([&] {
                state = io::JsonObject::load(folder / io::kRunStateFile);
                progress = from_json(*state);
                if (folder.filename() != name_of(progress.step))
                    fail(ErrorKind::format, "{}: holds step {}, not the one it is named after",
                         folder.string(), progress.step);
            }))
            continue;
        check(progress);
        if (reads([&] { load_values(folder / kValuesFile, *state, parameters, optimizer); })) return progress;
    }
    fail(ErrorKind::file, "{}: no checkpoint to resume from{}{}", folder_.string(),
         skipped.empty() ? "" : "; ", fmt::join(skipped, "; "));
}

}  // namespace ether::train
