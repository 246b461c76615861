// Learning-rate schedules as pure functions of the step. Warm-up rises linearly from 0; then constant, linear
// or cosine.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace ether::train {

enum class Schedule { constant, linear, cosine };

extern const std::vector<std::string> kScheduleNames;  // in the enum's order
Schedule schedule_named(const std::string& name);

// The factor on the learning rate for step (from 0) of total: min(1, (step + 1) / warmup_steps) times 1
// (constant), 1 - step / total (linear) or (1 + cos(pi step / total)) / 2 (cosine).
double schedule_factor(Schedule schedule, int64_t step, int64_t total, int64_t warmup_steps);

}  // namespace ether::train
