#include "ether/export/low_rank.h"

#include <ATen/Functions.h>

#include <algorithm>

namespace ether::exporting {

LowRank factored(const at::Tensor& change) {
    const int64_t out = change.size(0), in = change.size(1);
    if (in <= out) return {at::eye(in, change.options()), change};
    return {change, at::eye(out, change.options())};
}

Truncated truncated(const LowRank& change, int64_t rank) {
    const auto [left, left_core] = at::linalg_qr(change.b);
    const auto [right, right_core] = at::linalg_qr(change.a.t());
    const auto [u, s, vt] = at::linalg_svd(left_core.mm(right_core.t()), /*full_matrices=*/false);
    const int64_t kept = std::min(rank, s.size(0));
    const auto root = s.narrow(0, 0, kept).sqrt();
    return {.factors = {(root.unsqueeze(1) * vt.narrow(0, 0, kept)).mm(right.t()),
                        left.mm(u.narrow(1, 0, kept) * root)},
            .square = s.square().sum().item<double>(),
            .lost_square = s.narrow(0, kept, s.size(0) - kept).square().sum().item<double>()};
}

LowRank padded(const LowRank& factors, int64_t rank) {
    const int64_t more = rank - factors.rank();
    return {at::constant_pad_nd(factors.a, {0, 0, 0, more}), at::constant_pad_nd(factors.b, {0, more})};
}

}  // namespace ether::exporting
