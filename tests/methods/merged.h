// A fixture's model with an adapter merged into it.
#pragma once

#include <memory>

#include "ether/methods/adapted_model.h"
#include "fixture_models.h"

namespace ether::methods {

// A tied head gets a weight of its own where the merge gives it one.
inline std::unique_ptr<nn::Model> merged_of(AdaptedModel& adapted, const test::FixtureModel& fixture) {
    auto merged = fixture.load();
    const auto tensors = adapted.merged_tensors(at::kFloat);
    const auto head = merged->output_site().name() + ".weight";
    for (const auto& [name, tensor] : tensors)
        if (name == head) merged->untie_output();
    for (const auto& [name, tensor] : tensors) merged->replace(name, tensor);
    return merged;
}

}  // namespace ether::methods
