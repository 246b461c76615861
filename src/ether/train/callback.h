// What a training run tells those who watch it: a progress bar, metrics.jsonl, TensorBoard, tests.
// Callbacks are called from the training thread, in order, and are not owned by the trainer.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "ether/tasks/task.h"
#include "ether/train/run_state.h"

namespace ether::train {

struct RunInfo {
    std::filesystem::path folder;
    int64_t first_step = 0, total_steps = 0, steps_per_epoch = 0;
    // Trained by the method (full fine-tuning: the model's own) and besides it (heads and other whole
    // modules).
    int64_t adapter_parameters = 0, head_parameters = 0, model_parameters = 0;
    int64_t training_examples = 0, eval_examples = 0;
    std::string device;                           // "cpu, 2 threads"
    int64_t blocks = 0, checkpointed_blocks = 0;  // of the model; those that run again in backward
    std::string method, task;                     // task: "26 classes", or its name
    double learning_rate = 0;
    std::vector<std::string> warnings = {};  // one line each
};

struct StepReport {
    int64_t step = 0;  // from 1: steps done
    double epoch = 0;
    double loss = 0, learning_rate = 0, gradient_norm = 0;
    int64_t tokens = 0;  // of this step
    double seconds = 0;  // of this step
    double tokens_per_second() const { return seconds > 0 ? static_cast<double>(tokens) / seconds : 0; }
};

struct EvalReport {
    int64_t step = 0;
    double seconds = 0;
    tasks::Scores scores;
    bool best = false;
};

class Callback {
  public:
    virtual ~Callback() = default;
    virtual void on_start(const RunInfo&) {}
    virtual void on_step(const StepReport&) {}
    virtual void on_evaluation(const EvalReport&) {}
    virtual void on_end() {}
    virtual void on_warning(const std::string& /*line*/) {}

    // A log that grows says what it holds when a checkpoint is made, and is cut to that when the run goes on
    // from there; its name keys the mark in the checkpoint, empty: nothing to keep.
    virtual std::string log_name() const { return ""; }
    virtual LogMark log_mark() { return {}; }
    // Whether log_mark found, since it was last asked, that someone had removed, replaced or written to the
    // log.
    virtual bool lost_log() { return false; }
    virtual void resume_log(const LogMark&) {}
    // What a log without a record holds.
    virtual int64_t empty_log_bytes() const { return 0; }
};

}  // namespace ether::train
