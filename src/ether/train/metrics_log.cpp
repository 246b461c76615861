#include "ether/train/metrics_log.h"

#include <nlohmann/json.hpp>

namespace ether::train {

void MetricsLog::on_step(const StepReport& report) {
    const nlohmann::ordered_json line = {{"step", report.step},
                                         {"epoch", report.epoch},
                                         {"loss", report.loss},
                                         {"learning_rate", report.learning_rate},
                                         {"gradient_norm", report.gradient_norm},
                                         {"tokens", report.tokens},
                                         {"seconds", report.seconds},
                                         {"tokens_per_second", report.tokens_per_second()}};
    append(line.dump() + "\n");
}

void MetricsLog::on_evaluation(const EvalReport& report) {
    const nlohmann::ordered_json line = {
        {"step", report.step}, {"eval", report.scores}, {"best", report.best}, {"seconds", report.seconds}};
    append(line.dump() + "\n");
}

}  // namespace ether::train
