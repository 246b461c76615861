// Changes of weights as products B A, in float64: what a LoRA holds, and the nearest one of smaller rank.
#pragma once

#include <ATen/core/Tensor.h>

namespace ether::exporting {

struct LowRank {
    at::Tensor a, b;  // (r, in), (out, r)

    int64_t rank() const { return a.size(0); }
};

// Any change (out, in), exactly, at the rank that needs: the smaller of its sizes.
LowRank factored(const at::Tensor& change);

// The same change at the rank that it has to float32's precision, where that is at most what servers take
// (512); else as it is. Found by random probes of its range (Halko et al., arXiv 0909.4061).
LowRank compact(const LowRank& change);

// The nearest product of at most that rank in Frobenius' norm (Eckart and Young), and that norm's squares.
struct Truncated {
    LowRank factors;  // each singular value lies half in A, half in B
    double square = 0, lost_square = 0;
};

// By QR of both factors and an SVD between them: nothing of size (out, in) is formed.
Truncated truncated(const LowRank& change, int64_t rank);

// The same product with that many rows in A, of which the added ones are zero.
LowRank padded(const LowRank& factors, int64_t rank);

}  // namespace ether::exporting
