// MetricsLog: <run>/metrics.jsonl, one JSON object a line for each step and each evaluation.
// Only "seconds" and "tokens_per_second" depend on the clock; numbers read back as the same doubles, and what
// is not finite is null.
#pragma once

#include "ether/train/log_file.h"

namespace ether::train {

inline constexpr const char* kMetricsFile = "metrics.jsonl";

class MetricsLog : public LogFile {
  public:
    MetricsLog() : LogFile(kMetricsFile) {}

    // {"step", "epoch", "loss", "learning_rate", "gradient_norm", "tokens", "seconds", "tokens_per_second"}
    void on_step(const StepReport& report) override;
    // {"step", "eval": {scores}, "best", "seconds"}
    void on_evaluation(const EvalReport& report) override;
};

}  // namespace ether::train
