// The learning curve as one HTML page that needs nothing else: the plot with a read-out, and tables.
#pragma once

#include <string>

#include "ether/train/learning_curve.h"

namespace ether::train {

// `settings` is run.toml's text: lines of `name = value`.
std::string learning_curve_page(const RunInfo& info, const Metrics& metrics, const LinePlot& plot,
                                const Drawing& drawing, const std::string& settings);

}  // namespace ether::train
