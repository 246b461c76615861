#include "console.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>

namespace ether::app {
namespace {

using Clock = std::chrono::steady_clock;

constexpr double kRedraw = 0.1, kLine = 10;  // seconds between frames of the bar, and between plain lines
constexpr double kSmoothing = 0.9;

double seconds_since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
}

size_t terminal_width() {
    winsize size{};
    return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

// Whoever watched may have closed the terminal or the pipe: no reason to stop a run.
template <typename... Values>
void tell(fmt::format_string<Values...> format, Values&&... values) {
    std::fputs(fmt::format(format, std::forward<Values>(values)...).c_str(), stderr);
}

}  // namespace

std::string duration_text(double seconds) {
    const auto whole = static_cast<int64_t>(std::llround(seconds));
    if (whole < 3600) return fmt::format("{}:{:02}", whole / 60, whole % 60);
    return fmt::format("{}:{:02}:{:02}", whole / 3600, whole / 60 % 60, whole % 60);
}

std::string scores_text(const tasks::Scores& scores) {
    std::string text;
    for (const auto& [name, value] : scores)
        text += fmt::format("{}{} {:.4f}", text.empty() ? "" : ", ", name, value);
    return text;
}

ConsoleProgress::ConsoleProgress() : terminal_(isatty(STDERR_FILENO) == 1) {}

void ConsoleProgress::on_start(const train::RunInfo& info) {
    first_step_ = info.first_step;
    total_steps_ = info.total_steps;
    tell(
        "{} on {}: {} adapter and {} head parameters of {}, {}, {} training examples{}, learning rate {:g}\n",
        info.method, info.device, info.adapter_parameters, info.head_parameters, info.model_parameters,
        info.task, info.training_examples,
        info.eval_examples ? fmt::format(", {} for evaluation", info.eval_examples) : "", info.learning_rate);
    if (info.checkpointed_blocks)
        tell(
            "activations of {} of {} blocks are computed again in backward: less memory, for all of them "
            "about a third more time\n",
            info.checkpointed_blocks, info.blocks);
    for (const auto& warning : info.warnings) tell("warning: {}\n", warning);
    if (info.first_step) tell("resumed at step {} of {}\n", info.first_step, info.total_steps);
    start_ = last_drawn_ = Clock::now();
}

void ConsoleProgress::on_warning(const std::string& line) {
    clear_line();
    tell("warning: {}\n", line);
}

void ConsoleProgress::on_step(const train::StepReport& report) {
    ++seen_steps_;
    // A bias-corrected moving average, so that the first values count fully.
    const double keep = seen_steps_ == 1 ? 0 : kSmoothing;
    smooth_loss_ = keep * smooth_loss_ + (1 - keep) * report.loss;
    smooth_rate_ = keep * smooth_rate_ + (1 - keep) * report.tokens_per_second();
    const bool last = report.step == total_steps_;
    if (!last && seconds_since(last_drawn_) < (terminal_ ? kRedraw : kLine)) return;
    last_drawn_ = Clock::now();
    draw(report);
}

void ConsoleProgress::draw(const train::StepReport& report) {
    const double done = static_cast<double>(report.step) / static_cast<double>(total_steps_);
    const double left = seconds_since(start_) / static_cast<double>(seen_steps_) *
                        static_cast<double>(total_steps_ - report.step);
    const auto facts = fmt::format("step {}/{}  loss {:.4f}  {:.0f} tok/s  {} left", report.step,
                                   total_steps_, smooth_loss_, smooth_rate_, duration_text(left));
    if (!terminal_) {
        tell("{}\n", facts);
        return;
    }
    const size_t width = terminal_width(), room = width > facts.size() + 6 ? width - facts.size() - 6 : 0;
    const size_t bar = std::min<size_t>(room, 40),
                 full = static_cast<size_t>(done * static_cast<double>(bar));
    tell("\r\033[K{}",
         bar ? fmt::format("[{}{}] {}", std::string(full, '#'), std::string(bar - full, '.'), facts)
             : facts.substr(0, width - 1));
    std::fflush(stderr);
}

void ConsoleProgress::clear_line() {
    if (terminal_) tell("\r\033[K");
}

void ConsoleProgress::on_evaluation(const train::EvalReport& report) {
    clear_line();
    tell("evaluation at step {}: {}{} ({})\n", report.step, scores_text(report.scores),
         report.best ? ", the best so far" : "", duration_text(report.seconds));
}

void ConsoleProgress::on_end() { clear_line(); }

}  // namespace ether::app
