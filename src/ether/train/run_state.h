// RunState: what a run needs to go on bit for bit, as a folder checkpoints/step-N: state.safetensors
// (parameters and optimizer) and state.json. Written under another name, synced and renamed, so what is there
// is whole.
#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "ether/nn/parameters.h"
#include "ether/train/optimizer.h"

namespace ether::train {

// Below a run's folder.
inline constexpr const char* kCheckpointsFolder = "checkpoints";

// How far a log was written, and a hash of what it held.
struct LogMark {
    int64_t bytes = 0;
    std::string hash;
};

struct RunProgress {
    int64_t step = 0;  // steps done; epoch, batch and random numbers follow from it
    std::optional<double> best_score;
    int64_t best_step = 0;
    int64_t evaluations_without_best = 0;
    bool evaluation_due = false;  // after this step, which a signal put off
    bool finished = false, stopped_early = false;
    double loss = 0;           // of the last step
    std::string machine;       // what sums were added on: device, threads, pieces
    int64_t piece_tokens = 0;  // MemoryMode's
    std::map<std::string, std::string>
        inputs;  // base model and data, by hash: a run goes on with the same only
    std::map<std::string, std::string> settings;  // deciding_settings, likewise
    std::map<std::string, LogMark> logs;          // by Callback::log_name
};

// Whether a run names a checkpoint's folder so.
bool is_checkpoint_name(const std::string& name);

class RunState {
  public:
    explicit RunState(std::filesystem::path run_folder)
        : folder_(std::move(run_folder) / kCheckpointsFolder) {}

    // Writes step-N, and then removes what is old.
    void save(const RunProgress& progress, const nn::ParameterStore& parameters, const AdamW& optimizer,
              int64_t keep) const;
    // Loads the newest checkpoint that is whole into the given objects, and says in `skipped` what is wrong
    // with newer ones; throws if there is none. check: throws where a checkpoint is of another run than this
    // one, which no older one makes good; it is asked before values are looked at.
    RunProgress load(const nn::ParameterStore& parameters, AdamW& optimizer,
                     const std::function<void(const RunProgress&)>& check,
                     std::vector<std::string>& skipped) const;
    // Removes all but the newest `keep` of those up to a step: later ones could not be read.
    void remove_old(int64_t step, int64_t keep) const;
    // Removes all checkpoints: a new run begins.
    void clear() const;
    // The newest checkpoint's folder, if any.
    std::optional<std::filesystem::path> newest() const;

  private:
    std::vector<std::filesystem::path> all() const;  // newest first

    std::filesystem::path folder_;
};

}  // namespace ether::train
