#include "ether/train/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "ether/core/error.h"

namespace ether::train {

const std::vector<std::string> kScheduleNames = {"constant", "linear", "cosine"};

Schedule schedule_named(const std::string& name) {
    const auto found = std::find(kScheduleNames.begin(), kScheduleNames.end(), name);
    if (found == kScheduleNames.end())
        fail(ErrorKind::usage, "--schedule: \"{}\" is not known, expected one of {}", name,
             fmt::join(kScheduleNames, ", "));
    return static_cast<Schedule>(found - kScheduleNames.begin());
}

double schedule_factor(Schedule schedule, int64_t step, int64_t total, int64_t warmup_steps) {
    if (step < warmup_steps) return static_cast<double>(step + 1) / static_cast<double>(warmup_steps);
    const double left = static_cast<double>(std::max<int64_t>(1, total - warmup_steps));
    const double progress = std::min(1.0, static_cast<double>(step - warmup_steps) / left);
    switch (schedule) {
        case Schedule::constant:
            return 1;
        case Schedule::linear:
            return 1 - progress;
        case Schedule::cosine:
            return (1 + std::cos(std::numbers::pi * progress)) / 2;
    }
    ETHER_ASSERT(false);
}

}  // namespace ether::train
