// BOFT, butterfly orthogonal finetuning (Liu et al., arXiv 2311.06243): a layer's input is rotated by a
// product of m sparse rotations, and its outputs are scaled: s * (W R x) + b. Factor k of 0..m-1 is
// block-diagonal with rotations Q = (I - S)(I + S)^-1, S = (R - R^T) / 2, of features in another order:
// within 2^k blocks that lie side by side the even half-blocks come first, then the odd ones. The last factor
// meets x first. Trained values: R (m, in / b, b, b), zero at the start, and s (out, 1), one. Keys, shapes
// and defaults as in PEFT's boft tuner, which on a machine without CUDA knows m = 1 alone.
#include <ATen/Functions.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "ether/core/error.h"
#include "ether/methods/methods.h"

namespace ether::methods {
namespace {

using at::Tensor;

struct BoftOptions : MethodOptions {
    int64_t block_size = 4, blocks = 0, factors = 1;
    double dropout = 0;

    Fields fields() override {
        return {
            {.name = "block-size",
             .value = &block_size,
             .help = "width of a block; must divide a layer's input",
             .low = 0,
             .high = 1 << 16,
             .key = "boft_block_size"},
            {.name = "blocks",
             .value = &blocks,
             .help = "pieces of a layer's input, in place of --block-size; 0: by that",
             .low = 0,
             .high = 1 << 20,
             .key = "boft_block_num"},
            {.name = "factors",
             .value = &factors,
             .help = "m, rotations one after the other; features up to 2^(m-1) blocks apart are mixed",
             .low = 1,
             .high = 20,
             .key = "boft_n_butterfly_factor"},
            {.name = "block-dropout",
             .value = &dropout,
             .help =
                 "share of one factor's blocks, chosen at random, that are the identity in a training pass",
             .low = 0,
             .high = 0.99,
             .key = "boft_dropout"},
        };
    }

    // Blocks and their width at a layer.
    std::pair<int64_t, int64_t> division(const nn::Site& site) const {
        if (blocks == 0 && block_size == 0)
            fail(ErrorKind::usage, "--block-size and --blocks: both are 0; one must say how {} is divided",
                 site.name());
        const int64_t in = site.linear.in();
        const int64_t other = blocks > 0 ? divided(site, "input", in, "blocks", blocks)
                                         : divided(site, "input", in, "block-size", block_size);
        const auto result = blocks > 0 ? std::pair{blocks, other} : std::pair{other, block_size};
        const int64_t together = int64_t{1} << (factors - 1);
        if (factors > 1 && (result.first % together != 0 || result.second % 2 != 0))
            fail(ErrorKind::usage,
                 "--factors: {} factors need an even block width and a multiple of {} blocks, but {} has {} "
                 "blocks "
                 "of {}",
                 factors, together, site.name(), result.first, result.second);
        return result;
    }
};

class Boft : public Adapter {
  public:
    Boft(const BoftOptions& options, const MethodContext& context)
        : options_(options), rotations_(context.model) {
        for (const nn::Site* site : context.sites) {
            const auto [blocks, size] = options.division(*site);
            auto& [r, s, orders] = rotations_[*site];
            r = context.parameters.add(parameter_name(*site, "boft_R"),
                                       at::zeros({options.factors, blocks, size, size}));
            s = context.parameters.add(parameter_name(*site, "boft_s"), at::ones({site->linear.out(), 1}));
            for (int64_t factor = 0; factor < options.factors; ++factor)
                orders.push_back(butterfly(site->linear.in(), size, factor));
        }
    }

    nn::SiteForms forms(const nn::Site& site, const nn::Pass& pass) override {
        const auto& [r, s, orders] = rotations_[site];
        const auto skew = (r - r.transpose(2, 3)) / 2, one = at::eye(r.size(3), r.options());
        auto q = at::linalg_solve(one + skew, one - skew, /*left=*/false);
        if (pass.training && options_.dropout > 0)
            q = with_dropped_blocks(q, pass.stream(site.index, "blocks"));
        nn::SiteForms forms;
        for (int64_t factor = options_.factors - 1; factor >= 0; --factor) {
            const auto& order = orders[static_cast<size_t>(factor)];
            const bool moves = factor > 0;
            if (moves) forms.pre.emplace_back(nn::Permute{order});
            forms.pre.emplace_back(nn::BlockDiagonal{q[factor]});
            if (moves) forms.pre.emplace_back(nn::Permute{order.argsort()});
        }
        forms.post.emplace_back(nn::Scale{s.squeeze(1)});
        return forms;
    }

    // PEFT wants one of the two numbers alone.
    void to_config(nlohmann::json& config) const override {
        if (options_.blocks > 0) config["boft_block_size"] = 0;
    }

  private:
    struct Rotations {
        Tensor r, s;
        std::vector<Tensor> orders;  // of each factor
    };

    // Where each feature lies once the half-blocks are sorted: even ones first, within 2^factor blocks.
    static Tensor butterfly(int64_t width, int64_t size, int64_t factor) {
        if (factor == 0) return at::arange(width);
        const int64_t halves = int64_t{2} << factor;
        return at::arange(width)
            .view({-1, halves / 2, 2, size / 2})
            .transpose(1, 2)
            .reshape({width})
            .argsort();
    }

    Tensor with_dropped_blocks(const Tensor& q, const Random& random) const {
        const int64_t blocks = q.size(1),
                      factor = static_cast<int64_t>(random.uniform(0) * static_cast<double>(q.size(0)));
        const auto dropped = static_cast<int64_t>(options_.dropout * static_cast<double>(blocks));
        std::vector<std::pair<double, int64_t>> lots;
        for (int64_t block = 0; block < blocks; ++block)
            lots.emplace_back(random.uniform(static_cast<uint64_t>(block) + 1), block);
        std::sort(lots.begin(), lots.end());
        auto kept = at::ones({q.size(0), blocks, 1, 1}, at::kBool);
        for (int64_t i = 0; i < dropped; ++i) kept[factor][lots[static_cast<size_t>(i)].second].fill_(false);
        return at::where(kept, q, at::eye(q.size(3), q.options()));
    }

    const BoftOptions options_;
    BySite<Rotations> rotations_;
};

bool ignores(const std::string& key, const nlohmann::json&) { return key == "init_weights"; }

}  // namespace

Method boft() {
    return {"boft",
            "BOFT",
            "products of sparse rotations of a layer's input, and a factor for each output",
            1e-2,
            true,
            make_options<BoftOptions>,
            make_adapter<Boft, BoftOptions>,
            ignores};
}

}  // namespace ether::methods
