#include "ether/train/line_plot.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>

namespace ether::train {
namespace {

constexpr double kWidth = 960, kHeight = 540;
constexpr double kLeft = 76, kRight = 884, kTop = 92, kBottom = 476;
constexpr double kFaintTail = 0.003;  // share of a faint line's values that may lie outside, at each end
constexpr int kTicks = 6;

struct Axis {
    double low = 0, high = 1, step = 0.2;
    double share(double value) const { return (value - low) / (high - low); }
    int ticks() const { return static_cast<int>(std::lround((high - low) / step)) + 1; }
    std::string label(int tick) const {
        const double value = low + tick * step;
        return fmt::format("{:.10g}", std::abs(value) < step / 2 ? 0 : value);
    }
};

// Ticks at 1, 2 or 5 times a power of ten, from the last below `low` to the first above `high`.
Axis nice_axis(double low, double high, double smallest_step) {
    if (!(high > low)) {
        const double room = std::max(std::abs(low) * 0.1, smallest_step);
        low -= room;
        high += room;
    }
    const double rough = std::max((high - low) / kTicks, smallest_step);
    const double power = std::pow(10, std::floor(std::log10(rough)));
    Axis axis;
    axis.step = power * (rough > 5 * power ? 10 : rough > 2 * power ? 5 : rough > power ? 2 : 1);
    axis.low = std::floor(low / axis.step + 1e-9) * axis.step;
    axis.high = std::ceil(high / axis.step - 1e-9) * axis.step;
    return axis;
}

Axis y_axis(const std::vector<Series>& series, bool right) {
    double low = std::numeric_limits<double>::infinity(), high = -low;
    for (const auto& s : series) {
        if (s.right != right) continue;
        std::vector<double> values;
        for (const auto& point : s.points)
            if (std::isfinite(point.y)) values.push_back(point.y);
        if (values.empty()) continue;
        std::sort(values.begin(), values.end());
        // A few outliers of a noisy line must not press everything else flat.
        const auto tail = s.style == Series::Style::faint
                              ? static_cast<size_t>(kFaintTail * static_cast<double>(values.size()))
                              : 0;
        low = std::min(low, values[tail]);
        high = std::max(high, values[values.size() - 1 - tail]);
    }
    return low > high ? Axis() : nice_axis(low, high, 1e-6);
}

Axis x_axis(const std::vector<Series>& series) {
    double high = 1;
    for (const auto& s : series)
        if (!s.points.empty()) high = std::max(high, s.points.back().x);
    auto axis = nice_axis(0, high, 1);
    axis.high = high;  // the picture ends where the data does
    return axis;
}

bool uses(const std::vector<Series>& series, bool right) {
    return std::any_of(series.begin(), series.end(), [&](const auto& s) { return s.right == right; });
}

class Svg {
  public:
    template <typename... Args>
    void add(fmt::format_string<Args...> format, Args&&... args) {
        fmt::format_to(std::back_inserter(text_), format, std::forward<Args>(args)...);
    }
    void text(double x, double y, std::string_view extra, std::string_view content) {
        add("<text x=\"{:g}\" y=\"{:g}\" {}>{}</text>\n", x, y, extra, escape_markup(content));
    }
    std::string take() { return std::move(text_); }

  private:
    std::string text_;
};

void draw_y_axis(Svg& svg, const Axis& axis, const std::string& label, bool right) {
    const double x = right ? kRight : kLeft, out = right ? 1 : -1;
    for (int i = 0; i < axis.ticks(); ++i) {
        const double y = kBottom - axis.share(axis.low + i * axis.step) * (kBottom - kTop);
        if (!right)
            svg.add("<line x1=\"{:g}\" y1=\"{:.1f}\" x2=\"{:g}\" y2=\"{:.1f}\" stroke=\"#e6e8eb\"/>\n", kLeft,
                    y, kRight, y);
        svg.add("<line x1=\"{:g}\" y1=\"{:.1f}\" x2=\"{:g}\" y2=\"{:.1f}\" stroke=\"#8a9099\"/>\n", x, y,
                x + 5 * out, y);
        svg.text(x + 9 * out, std::round(y) + 4, right ? "" : "text-anchor=\"end\"", axis.label(i));
    }
    svg.add("<line x1=\"{0:g}\" y1=\"{1:g}\" x2=\"{0:g}\" y2=\"{2:g}\" stroke=\"#8a9099\"/>\n", x, kTop,
            kBottom);
    const double at = right ? kWidth - 18 : 22, middle = (kTop + kBottom) / 2;
    svg.text(at, middle,
             fmt::format("text-anchor=\"middle\" transform=\"rotate({} {:g} {:g})\"", right ? 90 : -90, at,
                         middle),
             label);
}

void draw_x_axis(Svg& svg, const Axis& axis, const std::string& label) {
    for (double value = axis.low; value <= axis.high; value += axis.step) {
        const double x = kLeft + axis.share(value) * (kRight - kLeft);
        svg.add("<line x1=\"{0:.1f}\" y1=\"{1:g}\" x2=\"{0:.1f}\" y2=\"{2:g}\" stroke=\"#8a9099\"/>\n", x,
                kBottom, kBottom + 5);
        svg.text(std::round(x), kBottom + 20, "text-anchor=\"middle\"", fmt::format("{:.10g}", value));
    }
    svg.add("<line x1=\"{:g}\" y1=\"{:g}\" x2=\"{:g}\" y2=\"{:g}\" stroke=\"#8a9099\"/>\n", kLeft, kBottom,
            kRight, kBottom);
    svg.text((kLeft + kRight) / 2, kBottom + 44, "text-anchor=\"middle\"", label);
}

std::string stroke(const Series& series) {
    switch (series.style) {
        case Series::Style::faint:
            return "stroke-width=\"1\" stroke-opacity=\"0.4\"";
        case Series::Style::line:
            return "stroke-width=\"2.25\"";
        case Series::Style::dots:
            return "stroke-width=\"1.5\" stroke-dasharray=\"5 4\"";
    }
    return "";
}

void draw_legend(Svg& svg, const std::vector<Series>& series) {
    constexpr double kSwatch = 26, kGap = 22, kCharacter = 6.9, y = 66;
    double x = kLeft;
    for (const auto& s : series) {
        svg.add("<line x1=\"{:g}\" y1=\"{:g}\" x2=\"{:g}\" y2=\"{:g}\" stroke=\"{}\" {}/>\n", x, y,
                x + kSwatch, y, s.color, stroke(s));
        if (s.style == Series::Style::dots)
            svg.add("<circle cx=\"{:g}\" cy=\"{:g}\" r=\"4\" fill=\"{}\"/>\n", x + kSwatch / 2, y, s.color);
        svg.text(x + kSwatch + 7, y + 4, "", s.name);
        x += kSwatch + 7 + kCharacter * static_cast<double>(s.name.size()) + kGap;
    }
}

void draw_series(Svg& svg, const Series& series, const std::vector<Point>& pixels) {
    std::string points;
    for (size_t i = 0; i < pixels.size(); ++i)
        if (std::isfinite(series.points[i].y))
            points += fmt::format("{}{:.1f},{:.1f}", points.empty() ? "" : " ", pixels[i].x, pixels[i].y);
    svg.add(
        "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" {} stroke-linejoin=\"round\" "
        "clip-path=\"url(#area)\"/>\n",
        points, series.color, stroke(series));
    if (series.style != Series::Style::dots) return;
    for (size_t i = 0; i < pixels.size(); ++i)
        if (std::isfinite(series.points[i].y))
            svg.add("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"4\" fill=\"{}\" stroke=\"#ffffff\"/>\n",
                    pixels[i].x, pixels[i].y, series.color);
}

}  // namespace

std::string escape_markup(std::string_view text) {
    std::string out;
    for (const char c : text) {
        switch (c) {
            case '&':
                out += "&amp;";
                break;
            case '<':
                out += "&lt;";
                break;
            case '>':
                out += "&gt;";
                break;
            case '"':
                out += "&quot;";
                break;
            default:
                out += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
        }
    }
    return out;
}

Drawing draw(const LinePlot& plot) {
    const Axis x = x_axis(plot.series), left = y_axis(plot.series, false), right = y_axis(plot.series, true);
    Drawing drawing{.svg = "", .pixels = {}, .left = kLeft, .right = kRight, .top = kTop, .bottom = kBottom};
    for (const auto& series : plot.series) {
        std::vector<Point> pixels;
        for (const auto& point : series.points)
            pixels.push_back({kLeft + x.share(point.x) * (kRight - kLeft),
                              kBottom - (series.right ? right : left).share(point.y) * (kBottom - kTop)});
        drawing.pixels.push_back(std::move(pixels));
    }
    Svg svg;
    svg.add(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0:g} {1:g}\" width=\"{0:g}\" "
        "height=\"{1:g}\" role=\"img\" aria-labelledby=\"plot-title plot-description\" "
        "font-family=\"system-ui, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif\" font-size=\"13\" "
        "fill=\"#3a4048\">\n",
        kWidth, kHeight);
    svg.add("<title id=\"plot-title\">{}</title>\n<desc id=\"plot-description\">{}</desc>\n",
            escape_markup(plot.title), escape_markup(plot.description));
    svg.add("<clipPath id=\"area\"><rect x=\"{:g}\" y=\"{:g}\" width=\"{:g}\" height=\"{:g}\"/></clipPath>\n",
            kLeft, kTop, kRight - kLeft, kBottom - kTop);
    svg.add("<rect width=\"{:g}\" height=\"{:g}\" fill=\"#ffffff\"/>\n", kWidth, kHeight);
    svg.text(kLeft, 36, "font-size=\"18\" font-weight=\"600\" fill=\"#16191d\"", plot.title);
    draw_legend(svg, plot.series);
    draw_y_axis(svg, left, plot.left_label, false);
    if (uses(plot.series, true)) draw_y_axis(svg, right, plot.right_label, true);
    draw_x_axis(svg, x, plot.x_label);
    for (size_t i = 0; i < plot.series.size(); ++i) draw_series(svg, plot.series[i], drawing.pixels[i]);
    svg.add("</svg>\n");
    drawing.svg = svg.take();
    return drawing;
}

}  // namespace ether::train
