#include "ether/nn/sequence_gate.h"

#include <ATen/Functions.h>

#include <optional>

namespace ether::nn {

using at::Tensor;

Tensor gate_of(const SequenceGate& gate, const Tensor& h, const Tensor& offsets) {
    const auto scores = at::addmm(gate.bias, h.to(gate.weight.scalar_type()), gate.weight.t());
    const bool single = scores.size(1) == 1;
    const auto means =
        at::segment_reduce(single ? scores.sigmoid() : scores.relu(), "mean", /*lengths=*/std::nullopt,
                           /*indices=*/std::nullopt, offsets.to(at::kLong));
    return (single ? means : means.softmax(1)).select(1, gate.index);
}

Tensor gated(const Tensor& x, const Tensor& factors, const Tensor& offsets) {
    const auto lengths = offsets.diff().to(at::kLong);
    return x * at::repeat_interleave(factors, lengths, 0, x.size(0)).unsqueeze(1);
}

}  // namespace ether::nn
