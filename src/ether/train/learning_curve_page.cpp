#include "ether/train/learning_curve_page.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <utility>

namespace ether::train {
namespace {

constexpr const char* kStyle = R"(<style>
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; color: #24292f;
       background: #fff; max-width: 960px; margin: 1.5rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; margin: 0 0 .3rem; }
h2 { font-size: 1.1rem; margin: 1.6rem 0 .4rem; }
figure { margin: 1rem 0 0; border: 1px solid #dde1e6; border-radius: 8px; overflow: hidden; }
figure:focus-visible { outline: 2px solid #0072b2; }
figure svg { display: block; width: 100%; height: auto; cursor: crosshair; }
figcaption { padding: .5rem 1rem; min-height: 1.5em; background: #f6f8fa; border-top: 1px solid #dde1e6;
             font-variant-numeric: tabular-nums; }
figcaption b { font-weight: 600; }
figcaption span { display: inline-block; margin-right: 1.2em; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem 1rem .25rem 0; border-bottom: 1px solid #e6e8eb;
         vertical-align: top; overflow-wrap: anywhere; }
th { font-weight: 600; }
tbody th { font-weight: 400; color: #57606a; white-space: nowrap; }
.number { text-align: right; }
tr.kept td { font-weight: 600; }
</style>
)";

constexpr const char* kScript = R"(<script>
const plot = JSON.parse(document.getElementById('plot-data').textContent);
const figure = document.querySelector('figure'), svg = figure.querySelector('svg');
const readout = figure.querySelector('figcaption'), hint = readout.textContent;
function add(name, attributes) {
    const element = svg.appendChild(document.createElementNS(svg.namespaceURI, name));
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    return element;
}
const cursor = add('line', {y1: plot.top, y2: plot.bottom, stroke: '#57606a', 'stroke-dasharray': '3 3',
                            visibility: 'hidden'});
const dots = plot.series.map(s => add('circle', {r: 4.5, fill: s.color, stroke: '#fff', 'stroke-width': 1.5,
                                                visibility: 'hidden'}));
const nearest = (points, x) => points.reduce((a, b) => Math.abs(b[2] - x) < Math.abs(a[2] - x) ? b : a);
let at = -1;  // index in the first series
function show(x) {
    const first = plot.series[0].points, point = nearest(first, x);
    at = first.indexOf(point);
    cursor.setAttribute('x1', point[2]);
    cursor.setAttribute('x2', point[2]);
    cursor.setAttribute('visibility', 'visible');
    readout.replaceChildren();
    const write = (text, color) => {
        const part = readout.appendChild(document.createElement('span'));
        part.textContent = text;
        part.style.color = color || '';
    };
    write('step ' + Math.round(point[0]));
    plot.series.forEach((series, i) => {
        const p = nearest(series.points, point[2]);
        const elsewhere = Math.round(p[0]) === Math.round(point[0]) ? '' : ' (step ' + Math.round(p[0]) + ')';
        write(series.name + ' ' + (p[1] === null ? 'none' : p[1].toPrecision(4)) + elsewhere, series.color);
        const inside = p[1] !== null && p[3] >= plot.top && p[3] <= plot.bottom;
        dots[i].setAttribute('cx', p[2]);
        dots[i].setAttribute('cy', p[3]);
        dots[i].setAttribute('visibility', inside ? 'visible' : 'hidden');
    });
}
function hide() {
    at = -1;
    for (const element of [cursor, ...dots]) element.setAttribute('visibility', 'hidden');
    readout.textContent = hint;
}
svg.addEventListener('pointermove', event => {
    show(new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse()).x);
});
svg.addEventListener('pointerleave', hide);
figure.addEventListener('blur', hide);
figure.addEventListener('keydown', event => {
    const points = plot.series[0].points, last = points.length - 1;
    const to = {ArrowLeft: Math.max(0, at - 1), ArrowRight: Math.min(last, at + 1), Home: 0, End: last}[event.key];
    if (to === undefined) return;
    event.preventDefault();
    show(points[to][2]);
});
</script>
)";

// 1234567 -> "1,234,567"; for counts, which are not negative.
std::string grouped(int64_t number) {
    const auto digits = std::to_string(number);
    std::string text;
    for (size_t i = 0; i < digits.size(); ++i) {
        if (i > 0 && (digits.size() - i) % 3 == 0) text += ',';
        text += digits[i];
    }
    return text;
}

std::string json_number(double value) { return std::isfinite(value) ? fmt::format("{:.6g}", value) : "null"; }

// {"top", "bottom", "series": [{"name", "color", "points": [[x, y, pixel x, pixel y], ...]}, ...]}
std::string plot_data(const LinePlot& plot, const Drawing& drawing) {
    std::string text = fmt::format("{{\"top\":{},\"bottom\":{},\"series\":[", drawing.top, drawing.bottom);
    for (size_t i = 0; i < plot.series.size(); ++i) {
        const auto& series = plot.series[i];
        text += fmt::format("{}\n{{\"name\":{},\"color\":\"{}\",\"points\":[", i ? "," : "",
                            nlohmann::json(series.name).dump(), series.color);
        for (size_t j = 0; j < series.points.size(); ++j) {
            const auto& pixel = drawing.pixels[i][j];
            text += fmt::format("{}[{},{},{},{}]", j ? "," : "", json_number(series.points[j].x),
                                json_number(series.points[j].y), json_number(pixel.x), json_number(pixel.y));
        }
        text += "]}";
    }
    text += "]}";
    std::string safe;  // within <script>
    for (const char c : text) {
        if (c == '<')
            safe += "\\u003c";
        else
            safe += c;
    }
    return safe;
}

using Rows = std::vector<std::pair<std::string, std::string>>;

std::string table_of(const std::string& title, const Rows& rows) {
    auto text = fmt::format("<h2>{}</h2>\n<table>\n<tbody>\n", title);
    for (const auto& [name, value] : rows)
        text += fmt::format("<tr><th scope=\"row\">{}</th><td>{}</td></tr>\n", escape_markup(name),
                            escape_markup(value));
    return text + "</tbody>\n</table>\n";
}

Rows facts(const RunInfo& info, const Metrics& metrics) {
    return {{"method", info.method},
            {"adapter parameters",
             fmt::format("{} ({:.3g} % of the model's {})", grouped(info.adapter_parameters),
                         100 * static_cast<double>(info.adapter_parameters) /
                             static_cast<double>(std::max<int64_t>(1, info.model_parameters)),
                         grouped(info.model_parameters))},
            {"head parameters", grouped(info.head_parameters)},
            {"training examples", grouped(info.training_examples)},
            {"evaluation examples", grouped(info.eval_examples)},
            {"steps", fmt::format("{} of {}", grouped(static_cast<int64_t>(metrics.loss.size())),
                                  grouped(info.total_steps))},
            {"time of the steps", fmt::format("{:.1f} s", metrics.step_seconds)},
            {"tokens a second",
             metrics.step_seconds > 0
                 ? grouped(std::llround(static_cast<double>(metrics.tokens) / metrics.step_seconds))
                 : "unknown"},
            {"device", info.device}};
}

Rows settings_rows(const std::string& toml) {
    Rows rows;
    std::istringstream lines(toml);
    for (std::string line; std::getline(lines, line);) {
        const auto equals = line.find(" = ");
        if (line.starts_with('#') || equals == std::string::npos) continue;
        std::string_view value = std::string_view(line).substr(equals + 3);
        const bool quoted = value.size() > 1 && value.front() == value.back() &&
                            (value.front() == '"' || value.front() == '\'');
        if (quoted) value = value.substr(1, value.size() - 2);
        if (!value.empty()) rows.emplace_back(line.substr(0, equals), value);
    }
    return rows;
}

std::string evaluations_table(const std::vector<EvalReport>& evaluations) {
    if (evaluations.empty()) return "";
    std::set<std::string> names;
    int64_t kept = 0;
    for (const auto& evaluation : evaluations) {
        for (const auto& [name, value] : evaluation.scores) names.insert(name);
        if (evaluation.best) kept = evaluation.step;
    }
    auto text = fmt::format(
        "<h2>Scores on the evaluation data</h2>\n<p>The adapter is that of step {}.</p>\n"
        "<table>\n<thead><tr><th scope=\"col\" class=\"number\">step</th>",
        kept);
    for (const auto& name : names)
        text += fmt::format("<th scope=\"col\" class=\"number\">{}</th>", escape_markup(name));
    text += "<th scope=\"col\" class=\"number\">seconds</th></tr></thead>\n<tbody>\n";
    for (const auto& evaluation : evaluations) {
        text += fmt::format("<tr{}><td class=\"number\">{}</td>",
                            evaluation.step == kept ? " class=\"kept\"" : "", grouped(evaluation.step));
        for (const auto& name : names) {
            const auto score = evaluation.scores.find(name);
            text += fmt::format("<td class=\"number\">{}</td>",
                                score == evaluation.scores.end() ? "" : fmt::format("{:.4f}", score->second));
        }
        text += fmt::format("<td class=\"number\">{:.1f}</td></tr>\n", evaluation.seconds);
    }
    return text + "</tbody>\n</table>\n";
}

}  // namespace

std::string learning_curve_page(const RunInfo& info, const Metrics& metrics, const LinePlot& plot,
                                const Drawing& drawing, const std::string& settings) {
    std::string page =
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
        "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n";
    const auto title = "Training run " + escape_markup(info.folder.lexically_normal().filename().string());
    page += fmt::format("<title>{}</title>\n{}</head>\n<body>\n<main>\n<h1>{}</h1>\n<p>{}</p>\n", title,
                        kStyle, title, escape_markup(plot.description));
    page += fmt::format(
        "<figure tabindex=\"0\" aria-label=\"Learning curve; the arrow keys read its values\">\n"
        "{}<figcaption aria-live=\"polite\">Point at the curve, or use the arrow keys, to read "
        "its values.</figcaption>\n</figure>\n",
        drawing.svg);
    page += evaluations_table(metrics.evaluations);
    page += table_of("The run", facts(info, metrics));
    page += table_of("Settings", settings_rows(settings));
    page += fmt::format(
        "</main>\n<script type=\"application/json\" id=\"plot-data\">{}</script>\n{}</body>\n</html>\n",
        plot_data(plot, drawing), kScript);
    return page;
}

}  // namespace ether::train
