// TensorBoardLog: the run's scalars as a TensorBoard event file, <run>/events.out.tfevents.0.ether.
// The name has no time or host in it, so that a resumed run goes on in the same file.
#pragma once

#include <cstdint>
#include <string_view>

#include "ether/train/log_file.h"

namespace ether::train {

inline constexpr const char* kEventFile = "events.out.tfevents.0.ether";

// CRC-32 with Castagnoli's polynomial, as TFRecord files carry it (masked).
uint32_t crc32c(std::string_view bytes);

class TensorBoardLog : public LogFile {
  public:
    TensorBoardLog() : LogFile(kEventFile) {}

    // train/loss, train/learning_rate, train/gradient_norm, train/tokens_per_second
    void on_step(const StepReport& report) override;
    // eval/<score> for each score
    void on_evaluation(const EvalReport& report) override;

    std::string header() const override;  // of one length, always
};

}  // namespace ether::train
