// What exported files are checked by: a few rows of random ids, and of tokens whose embeddings the adapter
// trained, on which a result that was read again is compared with the adapter it was made from.
#pragma once

#include <optional>

#include "ether/eval/loaded_adapter.h"

namespace ether::exporting {

struct Comparison {
    double largest_difference = 0;  // of probe logits, the result's against the adapter's
    double largest_logit = 0;       // of the adapter's forward, in magnitude
    double adapter_effect = 0;      // largest change of the probe logits by the adapter, its own head apart
    // The result's change of them along the adapter's, as a share of it: 1 where nothing was lost, 0 where
    // all was; and how far the result is from the adapter, 1 where that is as far as the base is. Absent
    // where the adapter changes nothing.
    std::optional<double> retained, distance;

    // The largest difference that rounding explains: 1e-4 where all is float32, else 5e-2 (bfloat16),
    // relative to max(1, largest logit).
    double tolerance(bool float32) const;
};

// A tensor of the base model, if any, that was trained in place and is no part of a head.
std::optional<std::string> tensor_trained_in_place(methods::AdaptedModel& adapted);

class Probe {
  public:
    // Runs the adapter and its base, and leaves the model unbound. The ids are the same in every run.
    explicit Probe(eval::LoadedAdapter& loaded);

    const data::Batch& batch() const { return batch_; }  // what the result must run
    Comparison compare(const at::Tensor& logits) const;

  private:
    data::Batch batch_;
    at::Tensor adapter_, base_;
};

}  // namespace ether::exporting
