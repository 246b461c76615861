// Trainer: one training run, from its configuration to a run folder. Owns model, data and optimizer.
// Same configuration, machine and thread count: the same bits, however often the run was stopped and resumed.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "ether/data/order.h"
#include "ether/train/callback.h"
#include "ether/train/memory_mode.h"
#include "ether/train/optimizer.h"
#include "ether/train/pass_graphs.h"
#include "ether/train/run_config.h"
#include "ether/train/run_lock.h"
#include "ether/train/run_setup.h"
#include "ether/train/run_state.h"

namespace ether::train {

struct RunResult {
    int64_t steps = 0;
    int64_t best_step = 0;
    std::optional<double> best_score;
    std::string best_score_name;
    double seconds = 0;      // of this process's steps and evaluations
    double final_loss = 0;   // of the last step
    int interrupted_by = 0;  // a signal's number; the run can be resumed
    bool stopped_early = false;
};

class Trainer {
  public:
    // Reads model, tokenizer and data and checks everything that can be checked before a file is written.
    // resume: go on from out's newest checkpoint; otherwise out must not hold a run yet.
    Trainer(RunConfig config, bool resume, std::vector<Callback*> callbacks);

    RunResult run();

    methods::AdaptedModel& model() { return *setup_.model; }
    const tasks::Task& task() const { return *setup_.task; }

  private:
    AdamW make_optimizer();
    RunInfo info(int64_t first_step) const;
    void open_folder(RunProgress& progress);
    void resume(RunProgress& progress);
    void check_same_run(const RunProgress& progress) const;
    void restore_adapter(RunProgress& progress);
    // Of the step that follows so many: what every learning rate is multiplied with.
    double rate_factor(int64_t step) const;
    [[noreturn]] void fail_not_finite(const char* what, double value, int64_t step) const;
    StepReport train_step(int64_t step);
    // False if a signal ended it.
    bool evaluate(RunProgress& progress);
    void check_before_saving();
    void save_adapter();
    void save_checkpoint(RunProgress& progress);

    RunConfig config_;
    const bool resume_;
    MemoryChoice memory_;
    std::vector<Callback*> callbacks_;
    std::unique_ptr<RunLock> lock_;
    std::string toml_;
    RunSetup setup_;
    bool begins_log_anew_ = false;
    std::vector<std::string> warnings_;
    std::unique_ptr<data::EpochOrder> order_;
    std::unique_ptr<AdamW> optimizer_;
    std::unique_ptr<PassGraphs> graphs_;
    RunState state_;
    int64_t steps_per_epoch_ = 0, total_steps_ = 0;
    int64_t loaded_epoch_ = -1;
    std::vector<data::BatchRows> epoch_batches_;
};

}  // namespace ether::train
