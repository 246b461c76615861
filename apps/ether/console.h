// Progress of a run for a person: a bar on a terminal, plain lines elsewhere. Writes to standard error, so
// that results on standard output can be piped.
#pragma once

#include <chrono>
#include <string>

#include "ether/train/callback.h"

namespace ether::app {

class ConsoleProgress : public train::Callback {
  public:
    ConsoleProgress();

    void on_start(const train::RunInfo& info) override;
    void on_step(const train::StepReport& report) override;
    void on_evaluation(const train::EvalReport& report) override;
    void on_end() override;
    void on_warning(const std::string& line) override;

  private:
    void draw(const train::StepReport& report);
    void clear_line();

    bool terminal_;
    int64_t first_step_ = 0, total_steps_ = 0;
    double smooth_loss_ = 0, smooth_rate_ = 0;
    int64_t seen_steps_ = 0;
    std::chrono::steady_clock::time_point start_, last_drawn_;
};

// "12:34" or "1:02:03".
std::string duration_text(double seconds);

// "loss 0.612, accuracy 0.818".
std::string scores_text(const tasks::Scores& scores);

}  // namespace ether::app
