// What exported files are checked by: a few rows of random ids, and of tokens whose embeddings the adapter
// trained, on which a result that was read again is compared with the adapter it was made from.
#pragma once

#include <optional>

#include "ether/methods/adapted_model.h"

namespace ether::exporting {

struct Comparison {
    double largest_difference = 0;  // of probe logits, the result's against the adapter's
    double largest_logit = 0;       // of the adapter's forward, in magnitude
    // Largest change of the probe logits by the adapter, to see the result's error beside it. Absent where
    // the base weights themselves were trained.
    std::optional<double> adapter_effect;
    // The result's change of them along the adapter's, as a share of it: 1 where nothing was lost, 0 where
    // all was. Absent where the adapter changes nothing, too.
    std::optional<double> retained;

    // The largest difference that rounding explains: 1e-4 where all is float32, else 5e-2 (bfloat16),
    // relative to max(1, largest logit).
    double tolerance(bool float32) const;
};

class Probe {
  public:
    // Runs the adapter and its base, and leaves the model unbound. The ids are the same in every run.
    explicit Probe(methods::AdaptedModel& adapted);

    const data::Batch& batch() const { return batch_; }  // what the result must run
    Comparison compare(const at::Tensor& logits) const;

  private:
    data::Batch batch_;
    at::Tensor adapter_, base_;
};

}  // namespace ether::exporting
