// A forward pass as a stranger's file would get one: rows of one token and of some more.
#pragma once

#include <ATen/core/grad_mode.h>

#include <algorithm>

#include "ether/data/batch.h"
#include "ether/nn/model.h"

namespace ether::fuzz {

// model: an nn::Model or an AdaptedModel of that shape.
template <typename Model>
void run_forward(Model& model, const nn::ModelShape& shape) {
    const at::NoGradGuard no_grad;
    std::vector<data::Sequence> rows(2);
    const int64_t longest = std::min<int64_t>(5, shape.max_positions);
    for (int64_t i = 0; i < longest; ++i) rows[0].ids.push_back(shape.vocab_size - 1 - i % shape.vocab_size);
    rows[1].ids = {0};
    const std::vector<int64_t> all = {0, 1};
    const auto batch = data::collate(rows, all, data::LabelType::none);
    model.logits({.batch = batch});
}

}  // namespace ether::fuzz
