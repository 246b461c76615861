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

// The factor on the learning rate for step (from 0) of total. In the warm-up (step + 1) / warmup_steps; then,
// with s the share of the steps behind it that are done, 1 (constant), 1 - s (linear) or (1 + cos(pi s)) / 2
// (cosine). As transformers' schedules (optimization.py), whose first step however has the rate 0.
double schedule_factor(Schedule schedule, int64_t step, int64_t total, int64_t warmup_steps);

}  // namespace ether::train
