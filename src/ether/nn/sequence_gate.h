// SequenceGate: a factor for each sequence of a batch, from the mean over its tokens (UniPELT, Mao et al.,
// arXiv 2110.07577, section 3.2).
#pragma once

#include <ATen/core/Tensor.h>

namespace ether::nn {

// weight: (gates, d), bias: (gates). One gate: the mean of sigmoid(w . h_t + b). Several that share one unit:
// softmax over the means of relu(w . h_t + b), of which `index` is meant.
struct SequenceGate {
    at::Tensor weight, bias;
    int64_t index = 0;
};

// h: (T, d), offsets: (B + 1) int32, Pass::sequence_offsets. Returns (B), in the weight's dtype;
// differentiable.
at::Tensor gate_of(const SequenceGate& gate, const at::Tensor& h, const at::Tensor& offsets);

// x (T, d) times each token's factor; factors: (B).
at::Tensor gated(const at::Tensor& x, const at::Tensor& factors, const at::Tensor& offsets);

}  // namespace ether::nn
