// The values that LoRA's A and B start with, by PEFT's names in init_lora_weights.
#pragma once

#include <string>
#include <vector>

#include "ether/core/random.h"
#include "ether/nn/site.h"

namespace ether::methods {

inline constexpr const char *kDefaultStart = "default", *kEva = "eva", *kMica = "mica";

struct LoraStart {
    at::Tensor a, b;  // (r, in), (out, r): float32
};

// "default": A kaiming-uniform (a = sqrt(5)), B zero. "gaussian": A normal with deviation 1 / r, B zero.
// "orthogonal": both random with B A = 0; r must be even.
// "pissa" (arXiv 2404.02948): the r largest singular values s_i and vectors of W, scale B A = U S V^T, each
// factor with sqrt(s_i / scale); "pissa_niter_N": nearly those, by N rounds of subspace iteration (Halko et
// al., arXiv 0909.4061), for wide layers. "olora" (arXiv 2406.01775): A the first r rows of R, B the first
// columns of Q, of W = Q R. "mica" (arXiv 2604.01694): A zero, B the left singular vectors of W's r smallest
// singular values, which stay as they are. Not for kEva, whose starts need all layers' inputs (eva.h).
LoraStart lora_start(const std::string& name, const nn::Site& site, int64_t rank, double scale,
                     const Random& random);

// The names, without pissa's with a number.
std::vector<std::string> lora_start_names();

// Whether B A is not zero at the start, so that it is to be taken from W.
bool moves_base(const std::string& name);

// N of "pissa_niter_N"; 0 of other names.
int64_t pissa_rounds(const std::string& name);

}  // namespace ether::methods
