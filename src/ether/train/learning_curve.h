// LearningCurve: at the end of a run, and of each part of a resumed one, makes <run>/learning_curve.svg and
// learning_curve.html from metrics.jsonl and run.toml. Place it after MetricsLog among the callbacks.
// A metrics.jsonl that was edited by hand is an Error that names the line.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "ether/train/callback.h"
#include "ether/train/line_plot.h"

namespace ether::train {

inline constexpr const char *kLearningCurveFile = "learning_curve.svg",
                            *kLearningCurvePage = "learning_curve.html";

struct Metrics {
    std::vector<Point> loss;  // of each step
    std::vector<EvalReport> evaluations;
    double step_seconds = 0;  // of all steps
    int64_t tokens = 0;
};

// Reads a run's metrics.jsonl.
Metrics read_metrics(const std::filesystem::path& file);

// Means of at most `limit` groups of neighbours, each at the middle of its group.
std::vector<Point> thinned(const std::vector<Point>& points, size_t limit);
// Each y becomes the mean of itself and `reach` neighbours on either side, of those that there are.
std::vector<Point> smoothed(const std::vector<Point>& points, size_t reach);

class LearningCurve : public Callback {
  public:
    // Reads what a resumed run has written so far: damage is told before training, not after it.
    void on_start(const RunInfo& info) override;
    void on_end() override;

  private:
    RunInfo info_;
};

}  // namespace ether::train
