#include "comparison.h"

#include <fmt/format.h>

namespace ether::app {

void add_comparison(const exporting::Comparison& comparison, nlohmann::json& object) {
    const auto or_null = [](const std::optional<double>& value) {
        return value ? nlohmann::json(*value) : nlohmann::json();
    };
    object["largest_difference"] = comparison.largest_difference;
    object["largest_logit"] = comparison.largest_logit;
    object["adapter_effect"] = comparison.adapter_effect;
    object["retained"] = or_null(comparison.retained);
    object["distance"] = or_null(comparison.distance);
}

std::string comparison_text(const exporting::Comparison& comparison, const std::string& advice) {
    std::string effect = ", of which the adapter changes none";
    if (comparison.retained)
        effect = fmt::format(", the adapter changes them by up to {:.3g}, of which {:.1f}% is retained{}",
                             comparison.adapter_effect, 100 * *comparison.retained,
                             *comparison.retained < 0.9 ? advice : "");
    return fmt::format("probe logits differ from the adapter's by at most {:.2g} (largest logit {:.3g}{})",
                       comparison.largest_difference, comparison.largest_logit, effect);
}

}  // namespace ether::app
