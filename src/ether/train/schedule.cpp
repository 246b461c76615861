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
    const double warmup =
        warmup_steps > 0 ? std::min(1.0, static_cast<double>(step + 1) / static_cast<double>(warmup_steps))
                         : 1.0;
    const double progress =
        total > 0 ? std::min(1.0, static_cast<double>(step) / static_cast<double>(total)) : 0.0;
    switch (schedule) {
        case Schedule::constant:
            return warmup;
        case Schedule::linear:
            return warmup * (1 - progress);
        case Schedule::cosine:
            return warmup * (1 + std::cos(std::numbers::pi * progress)) / 2;
    }
    ETHER_ASSERT(false);
}

}  // namespace ether::train
