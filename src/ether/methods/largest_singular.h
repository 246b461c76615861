// The largest singular values and vectors of a wide matrix, nearly.
#pragma once

#include <ATen/core/Tensor.h>

#include "ether/core/random.h"

namespace ether::methods {

struct SingularValues {
    at::Tensor u, s, vh;  // (rows, k), (k) falling, (k, columns)
};

// At least the `count` largest of the matrix (rows, columns), or all if it has fewer, by `rounds` of subspace
// iteration from a random start (Halko et al., arXiv 0909.4061).
SingularValues largest_singular(const at::Tensor& matrix, int64_t count, int64_t rounds,
                                const Random& random);

}  // namespace ether::methods
