// A part of a graph as a graph of its own: what passes between parts lies in memory.
#pragma once

#include <vector>

#include "ether/ops/rows/plan.h"

namespace ether::ops {

struct Part {
    Plan plan;
    std::vector<size_t> inputs;      // the whole graph's values that are plan's inputs
    std::vector<size_t> parameters;  // the whole graph's numbers of plan's parameters

    // steps: of the whole graph, in order. outputs: values that these make; one that is there twice has two
    // gradients.
    Part(const Plan& whole, const std::vector<size_t>& steps, const std::vector<size_t>& outputs);
};

// The graph's steps, cut behind each of these.
std::vector<std::vector<size_t>> cut(const Plan& plan, const std::vector<char>& behind);

}  // namespace ether::ops
