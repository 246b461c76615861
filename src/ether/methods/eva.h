// EVA (Paischer et al., arXiv 2410.07170): A starts as the directions in which a layer's inputs vary most on
// the training data, and rank goes to the layers where a direction explains most. After PEFT's
// tuners/lora/eva.py.
#pragma once

#include "ether/methods/method.h"

namespace ether::methods {

struct EvaOptions {
    double rho = 2;       // a layer may get up to rho times its rank; 1: each keeps its own
    bool whiten = false;  // each direction over the root of its singular value
    bool operator==(const EvaOptions&) const = default;
};

// Each site's A (r_i, in), float32: orthonormal rows, falling by the variance they explain. The r_i add up to
// the given ranks' sum; 0 (undefined) where others explain more. Runs the base on as many batches of
// context.run_batch as it takes until the directions stay (cosine of 0.99 from one batch to the next), or
// 1,000. An Error of kind `usage` where there are no batches.
BySite<at::Tensor> eva_starts(const MethodContext& context, const BySite<int64_t>& ranks,
                              const EvaOptions& options);

}  // namespace ether::methods
