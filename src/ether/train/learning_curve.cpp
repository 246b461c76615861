#include "ether/train/learning_curve.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <span>

#include "ether/io/adapter_folder.h"
#include "ether/io/atomic.h"
#include "ether/io/file.h"
#include "ether/io/json_reader.h"
#include "ether/train/learning_curve_page.h"
#include "ether/train/metrics_log.h"

namespace ether::train {
namespace {

constexpr size_t kPoints = 600;  // drawn at most
// Points averaged on each side: one in kSmoothing, but at least kLeastReach.
constexpr size_t kSmoothing = 40, kLeastReach = 2;
constexpr const char* kLossColor = "#0072b2";
constexpr const char* kEvalLossColor = "#4b3f8f";
constexpr std::array kScoreColors = {"#d55e00", "#008f68", "#b8528d", "#8a6d00"};

double number_or_nan(const nlohmann::json& value) {
    return value.is_number() ? value.get<double>() : std::numeric_limits<double>::quiet_NaN();
}

// Scores that share an axis: those in [-1, 1] if there are any, else all others. Loss has its own.
std::vector<std::string> plotted_scores(const std::vector<EvalReport>& evaluations) {
    std::map<std::string, bool> small;
    for (const auto& evaluation : evaluations)
        for (const auto& [name, value] : evaluation.scores)
            if (name != "loss") small.try_emplace(name, true).first->second &= !(std::abs(value) > 1);
    const bool any = std::any_of(small.begin(), small.end(), [](const auto& entry) { return entry.second; });
    std::vector<std::string> names;
    for (const auto& [name, is_small] : small)
        if (is_small == any) names.push_back(name);
    return names;
}

std::vector<Point> score_points(const std::vector<EvalReport>& evaluations, const std::string& name) {
    std::vector<Point> points;
    for (const auto& evaluation : evaluations)
        if (const auto score = evaluation.scores.find(name); score != evaluation.scores.end())
            points.push_back({static_cast<double>(evaluation.step), score->second});
    return points;
}

double mean_y(std::span<const Point> points) {
    double sum = 0;
    for (const auto& point : points) sum += point.y;
    return sum / static_cast<double>(points.size());
}

std::string in_words(const Metrics& metrics) {
    const std::span<const Point> loss = metrics.loss;
    const size_t some = std::max<size_t>(1, loss.size() / 20);
    auto text = fmt::format("In {} steps the training loss went from {:.3g} to {:.3g}, as means of {} steps.",
                            loss.size(), mean_y(loss.first(some)), mean_y(loss.last(some)), some);
    if (metrics.evaluations.empty()) return text;
    const auto& last = metrics.evaluations.back();
    std::vector<std::string> scores;
    for (const auto& [name, value] : last.scores) scores.push_back(fmt::format("{} {:.4g}", name, value));
    return text + fmt::format(" The evaluation at step {} gave {}.", last.step, fmt::join(scores, ", "));
}

LinePlot make_plot(const RunInfo& info, const Metrics& metrics) {
    const auto points = thinned(metrics.loss, kPoints);
    const size_t reach = std::max(kLeastReach, points.size() / kSmoothing);
    const auto smooth = smoothed(points, reach);
    const auto scores = plotted_scores(metrics.evaluations);
    LinePlot plot{
        .title = fmt::format("Learning curve: {}, learning rate {:g}", info.method, info.learning_rate),
        .description = in_words(metrics),
        .x_label = fmt::format("step ({} steps are one epoch)", info.steps_per_epoch),
        .left_label = "loss",
        .right_label = fmt::format("{} on evaluation data", fmt::join(scores, ", ")),
        .series = {}};
    const size_t group = (metrics.loss.size() + kPoints - 1) / kPoints;
    auto add = [&](std::string name, const char* color, std::vector<Point> values, Series::Style style,
                   bool right) {
        plot.series.push_back({std::move(name), color, std::move(values), style, right});
    };
    const bool many = points.size() > 2 * kLeastReach;
    add("training loss", kLossColor, points, many ? Series::Style::faint : Series::Style::dots, false);
    if (many)
        add(fmt::format("mean of {} steps", group * (2 * reach + 1)), kLossColor, smooth, Series::Style::line,
            false);
    if (auto loss = score_points(metrics.evaluations, "loss"); !loss.empty())
        add("evaluation loss", kEvalLossColor, std::move(loss), Series::Style::dots, false);
    for (size_t i = 0; i < scores.size(); ++i)
        add(scores[i], kScoreColors[i % kScoreColors.size()], score_points(metrics.evaluations, scores[i]),
            Series::Style::dots, true);
    return plot;
}

}  // namespace

Metrics read_metrics(const std::filesystem::path& file) {
    const auto text = io::read_input(file);
    Metrics metrics;
    int64_t number = 1;
    for (size_t begin = 0; begin < text.size();) {
        const size_t end = std::min(text.find('\n', begin), text.size());
        const io::JsonObject line(
            io::parse_json(std::string_view(text).substr(begin, end - begin), file.string(), number),
            fmt::format("{}:{}", file.string(), number));
        ++number;
        begin = end + 1;
        if (line.has("eval")) {
            EvalReport report{.step = line.get<int64_t>("step"), .seconds = line.get<double>("seconds")};
            report.best = line.get<bool>("best");
            const auto scores = line.object("eval");
            for (const auto& name : scores.keys())
                report.scores[name] = number_or_nan(scores.document().at(name));
            metrics.evaluations.push_back(std::move(report));
        } else {
            metrics.loss.push_back(
                {static_cast<double>(line.get<int64_t>("step")), line.get<double>("loss")});
            metrics.step_seconds += line.get<double>("seconds");
            metrics.tokens += line.get<int64_t>("tokens");
        }
    }
    return metrics;
}

std::vector<Point> thinned(const std::vector<Point>& points, size_t limit) {
    const size_t group = std::max<size_t>(1, (points.size() + limit - 1) / limit);
    std::vector<Point> result;
    for (size_t i = 0; i < points.size(); i += group) {
        const auto part = std::span(points).subspan(i, std::min(group, points.size() - i));
        result.push_back({(part.front().x + part.back().x) / 2, mean_y(part)});
    }
    return result;
}

std::vector<Point> smoothed(const std::vector<Point>& points, size_t reach) {
    auto result = points;
    for (size_t i = 0; i < points.size(); ++i) {
        const size_t first = i - std::min(i, reach), last = std::min(i + reach, points.size() - 1);
        result[i].y = mean_y(std::span(points).subspan(first, last - first + 1));
    }
    return result;
}

void LearningCurve::on_start(const RunInfo& info) {
    info_ = info;
    if (info.first_step > 0) read_metrics(info.folder / kMetricsFile);
}

void LearningCurve::on_end() {
    const auto metrics = read_metrics(info_.folder / kMetricsFile);
    if (metrics.loss.empty()) return;
    const auto plot = make_plot(info_, metrics);
    const auto drawing = draw(plot);
    io::write_file_atomic(info_.folder / kLearningCurveFile, drawing.svg);
    io::write_file_atomic(
        info_.folder / kLearningCurvePage,
        learning_curve_page(info_, metrics, plot, drawing, io::read_text_file(info_.folder / io::kRunFile)));
}

}  // namespace ether::train
