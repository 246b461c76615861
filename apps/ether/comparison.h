// How merge and export tell what they found when they read their result again.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "ether/export/probe.h"

namespace ether::app {

// Adds "largest_difference", "largest_logit", "adapter_effect", "retained" and "distance".
void add_comparison(const exporting::Comparison& comparison, nlohmann::json& object);

// "probe logits differ from the adapter's by at most 1e-07 (largest logit 2.1, the adapter changes ...)";
// `advice` follows where less than nine tenths of the adapter's effect is retained.
std::string comparison_text(const exporting::Comparison& comparison, const std::string& advice);

}  // namespace ether::app
