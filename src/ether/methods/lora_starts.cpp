#include "ether/methods/lora_starts.h"

#include <ATen/Functions.h>

#include <algorithm>
#include <charconv>
#include <cmath>

#include "ether/core/error.h"
#include "ether/methods/largest_singular.h"
#include "ether/methods/method.h"

namespace ether::methods {
namespace {

using at::Tensor;

constexpr std::string_view kPissa = "pissa", kRounds = "pissa_niter_";

LoraStart orthogonal(const nn::Site& site, int64_t rank, const Random& random) {
    if (rank % 2 != 0)
        fail(ErrorKind::usage, "--init-lora-weights orthogonal: needs an even rank, got {} for {}", rank,
             site.name());
    constexpr double kSize = 0.1;
    const auto basis = std::get<0>(at::linalg_qr(normal({rank, rank}, 1, random.stream("basis"))));
    const auto half = [&](int64_t first) { return basis.slice(0, first, rank, 2); };
    return {normal({site.linear.in(), rank / 2}, kSize, random.stream("A")).mm(half(0)).t().contiguous(),
            normal({site.linear.out(), rank / 2}, kSize, random.stream("B")).mm(half(1))};
}

LoraStart pissa(const Tensor& weight, int64_t rank, int64_t rounds, double scale, const Random& random) {
    SingularValues svd;
    if (rounds > 0)
        svd = largest_singular(weight, rank, rounds, random);
    else
        std::tie(svd.u, svd.s, svd.vh) = at::linalg_svd(weight, /*full_matrices=*/false);
    const auto root = (svd.s.narrow(0, 0, rank) / scale).sqrt();
    return {root.unsqueeze(1) * svd.vh.narrow(0, 0, rank), svd.u.narrow(1, 0, rank) * root};
}

}  // namespace

std::vector<std::string> lora_start_names() {
    return {kDefaultStart, "gaussian", "orthogonal", kEva, "pissa", "olora", kMica};
}

int64_t pissa_rounds(const std::string& name) {
    constexpr int64_t kMost = 100;
    int64_t rounds = 0;
    const char* end = name.data() + name.size();
    if (!name.starts_with(kRounds)) return 0;
    const auto [last, error] = std::from_chars(name.data() + kRounds.size(), end, rounds);
    return error == std::errc() && last == end && rounds <= kMost ? rounds : 0;
}

bool moves_base(const std::string& name) { return name.starts_with(kPissa) || name == "olora"; }

LoraStart lora_start(const std::string& name, const nn::Site& site, int64_t rank, double scale,
                     const Random& random) {
    const int64_t in = site.linear.in(), out = site.linear.out();
    ETHER_ASSERT(name != kEva);
    if (name == "orthogonal") return orthogonal(site, rank, random);
    if (!moves_base(name) && name != kMica)
        return {name == "gaussian" ? normal({rank, in}, 1 / static_cast<double>(rank), random)
                                   : kaiming_uniform({rank, in}, random),
                at::zeros({out, rank})};
    if (rank > std::min(in, out))
        fail(ErrorKind::usage, "--init-lora-weights {}: {} has no more than {} singular values, rank is {}",
             name, site.name(), std::min(in, out), rank);
    if (scale == 0 && name != kMica)
        fail(ErrorKind::usage, "--init-lora-weights {}: needs a scale above 0, but {} has --alpha 0", name,
             site.name());
    const at::NoGradGuard no_grad;
    const auto weight = site.linear.weight.to(at::kFloat);
    if (name == kMica) {
        const auto u = std::get<0>(at::linalg_svd(weight, /*full_matrices=*/false));
        return {at::zeros({rank, in}), u.narrow(1, u.size(1) - rank, rank).contiguous()};
    }
    if (name != "olora") return pissa(weight, rank, pissa_rounds(name), scale, random);
    const auto [q, r] = at::linalg_qr(weight);
    return {r.narrow(0, 0, rank).contiguous(), q.narrow(1, 0, rank).contiguous()};
}

}  // namespace ether::methods
