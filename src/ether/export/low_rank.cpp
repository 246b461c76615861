#include "ether/export/low_rank.h"

#include <ATen/Functions.h>

#include <algorithm>

#include "ether/methods/method.h"

namespace ether::exporting {
namespace {

// The largest `rank` singular values, each half in A, half in B, between bases (out, k) and (k, in).
LowRank halves(const at::Tensor& left, const at::Tensor& s, const at::Tensor& right, int64_t rank) {
    const auto root = s.narrow(0, 0, rank).sqrt();
    return {root.unsqueeze(1) * right.narrow(0, 0, rank), left.narrow(1, 0, rank) * root};
}

}  // namespace

LowRank factored(const at::Tensor& change) {
    const int64_t out = change.size(0), in = change.size(1);
    if (in <= out) return {at::eye(in, change.options()), change};
    return {change, at::eye(out, change.options())};
}

LowRank compact(const LowRank& change) {
    constexpr int64_t kMostServed = 512, kSpare = 8;
    constexpr double kFloat32 = 1e-6;  // of the change; what is less is rounding of how it was made
    const int64_t in = change.a.size(1), probes = std::min({change.rank(), in, kMostServed + kSpare});
    if (probes == 0) return change;
    const auto random = methods::normal({in, probes}, 1, Random(0)).to(change.a.options());
    const auto range = std::get<0>(at::linalg_qr(change.b.mm(change.a.mm(random))));
    const auto core = range.t().mm(change.b).mm(change.a);
    const auto [u, s, vt] = at::linalg_svd(core, /*full_matrices=*/false);
    const auto whole = change.b.mm(change.a);
    const double most_lost = kFloat32 * whole.norm().item<double>();
    if (!((whole - range.mm(core)).norm().item<double>() <= most_lost)) return change;
    // tails[i]: what is lost without the singular values from i on.
    const auto tails = s.square().flip(0).cumsum(0).flip(0).sqrt();
    const int64_t rank = tails.gt(most_lost).sum().item<int64_t>();
    if (rank >= change.rank() || rank > kMostServed) return change;
    const auto [a, b] = halves(u, s, vt, rank);
    return {a, range.mm(b)};
}

Truncated truncated(const LowRank& change, int64_t rank) {
    const auto [left, left_core] = at::linalg_qr(change.b);
    const auto [right, right_core] = at::linalg_qr(change.a.t());
    const auto [u, s, vt] = at::linalg_svd(left_core.mm(right_core.t()), /*full_matrices=*/false);
    const int64_t kept = std::min(rank, s.size(0));
    const auto [a, b] = halves(u, s, vt, kept);
    return {.factors = {a.mm(right.t()), left.mm(b)},
            .square = s.square().sum().item<double>(),
            .lost_square = s.narrow(0, kept, s.size(0) - kept).square().sum().item<double>()};
}

LowRank padded(const LowRank& factors, int64_t rank) {
    const int64_t more = rank - factors.rank();
    return {at::constant_pad_nd(factors.a, {0, 0, 0, more}), at::constant_pad_nd(factors.b, {0, more})};
}

}  // namespace ether::exporting
