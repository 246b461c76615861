// LinePlot: lines over a common x axis and up to two y axes, drawn as SVG text without external fonts.
// Values that are not finite are left out. No state; throws nothing of its own.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace ether::train {

struct Point {
    double x = 0, y = 0;
};

struct Series {
    std::string name;                                            // in the legend
    std::string color;                                           // as in CSS
    std::vector<Point> points;                                   // ascending x
    enum class Style { line, faint, dots } style = Style::line;  // dots: joined by a dashed line
    bool right = false;                                          // on the second y axis
};

struct LinePlot {
    std::string title, description;  // description: in words, for those who cannot see the picture
    std::string x_label, left_label, right_label;
    std::vector<Series> series;
};

struct Drawing {
    std::string svg;
    std::vector<std::vector<Point>> pixels;           // where the points of each series lie, for interaction
    double left = 0, right = 0, top = 0, bottom = 0;  // the plotting area
};

Drawing draw(const LinePlot& plot);

// Text for HTML and XML, also within double quotes.
std::string escape_markup(std::string_view text);

}  // namespace ether::train
