#include "ether/train/run_state.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "ether/core/error.h"
#include "ether/io/adapter_folder.h"
#include "ether/io/file.h"
#include "ether/io/json_reader.h"
#include "ether/io/safetensors.h"

namespace ether::train {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kParameter = "parameter/", kOptimizer = "optimizer/";

constexpr std::string_view kPrefix = "step-";
constexpr size_t kDigits = 9;

std::string name_of(int64_t step) { return fmt::format("{}{:0{}}", kPrefix, step, kDigits); }

nlohmann::json to_json(const RunProgress& progress) {
    return {{"step", progress.step},
            {"best_score", progress.best_score ? nlohmann::json(*progress.best_score) : nlohmann::json()},
            {"best_step", progress.best_step},
            {"evaluations_without_best", progress.evaluations_without_best},
            {"finished", progress.finished},
            {"stopped_early", progress.stopped_early},
            {"loss", progress.loss},
            {"inputs", progress.inputs},
            {"log_bytes", progress.log_bytes}};
}

RunProgress from_json(const io::JsonObject& json) {
    RunProgress progress;
    progress.step = json.get<int64_t>("step");
    if (json.has("best_score")) progress.best_score = json.get<double>("best_score");
    progress.best_step = json.get<int64_t>("best_step");
    progress.evaluations_without_best = json.get<int64_t>("evaluations_without_best");
    progress.finished = json.get<bool>("finished");
    progress.stopped_early = json.get_or<bool>("stopped_early", false);
    progress.loss = json.get_or<double>("loss", 0);
    progress.inputs = json.get<std::string>("inputs");
    const auto logs = json.object("log_bytes");
    for (const auto& name : logs.keys()) progress.log_bytes[name] = logs.get<int64_t>(name);
    return progress;
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
    io::write_safetensors(folder.path() / "state.safetensors", tensors);
    io::write_file_atomic(folder.path() / io::kRunStateFile, to_json(progress).dump(2) + "\n");
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

RunProgress RunState::load(const nn::ParameterStore& parameters, AdamW& optimizer) const {
    const at::NoGradGuard no_grad;
    std::string reasons;
    for (const auto& folder : all()) {
        try {
            const auto progress = from_json(io::JsonObject::load(folder / io::kRunStateFile));
            if (folder.filename() != name_of(progress.step))
                fail(ErrorKind::format, "{}: holds step {}, not the one it is named after", folder.string(),
                     progress.step);
            const io::SafetensorsFile file(folder / "state.safetensors");
            io::NamedTensors optimizer_state;
            for (const auto& name : file.names())
                if (name.starts_with(kOptimizer))
                    optimizer_state.emplace_back(name.substr(kOptimizer.size()), file.tensor(name));
            std::vector<std::pair<at::Tensor, at::Tensor>> copies;
            for (const auto& parameter : parameters.all()) {
                const auto saved = file.tensor(std::string(kParameter) + parameter.name);
                if (saved.sizes() != parameter.value.sizes() ||
                    saved.scalar_type() != parameter.value.scalar_type())
                    fail(ErrorKind::format, "{}: \"{}\" has another shape or dtype than this run",
                         folder.string(), parameter.name);
                copies.emplace_back(parameter.value, saved);
            }
            optimizer.load_state(optimizer_state);
            for (auto& [value, saved] : copies) value.copy_(saved);
            return progress;
        } catch (const Error& error) {
            reasons += fmt::format("; {}", error.what());
        }
    }
    fail(ErrorKind::file, "{}: no checkpoint to resume from{}", folder_.string(), reasons);
}

}  // namespace ether::train
