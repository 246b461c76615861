// BOFT, butterfly orthogonal finetuning (Liu et al., arXiv 2311.06243): a layer's input is rotated by a
// product of m sparse rotations, and its outputs are scaled: s * (W R x) + b. Factor k of 0..m-1 is
// block-diagonal with rotations Q = (I - S)(I + S)^-1, S = (R - R^T) / 2, of features in another order: of
// the half-blocks of 2^k blocks that lie side by side, the first half is moved to the even places, the second
// half to the odd ones. The last factor meets x first. Trained values: R (m, in / b, b, b), zero at the
// start, and s (out, 1), one. Keys, shapes and defaults as in PEFT's boft tuner, which on a machine without
// CUDA knows m = 1 alone.
#include <ATen/Functions.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "ether/core/error.h"
#include "ether/methods/biases.h"
#include "ether/methods/block_division.h"
#include "ether/methods/methods.h"
#include "ether/ops/cayley/cayley.h"

namespace ether::methods {
namespace {

using at::Tensor;

struct BoftOptions : MethodOptions {
    static constexpr const char* kBiasOnly = "boft_only";

    BlockDivision division{.size = 4};
    int64_t factors = 1;
    double dropout = 0;

    Fields fields() override {
        return {
            division.size_field("boft_block_size"),
            division.count_field("boft_block_num"),
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

    // Without its CUDA kernel PEFT writes and reads a single factor, whatever its configuration says.
    void from_tensors(io::NamedTensors& tensors) override {
        for (const auto& [name, tensor] : tensors)
            if (name.ends_with(".boft_R") && tensor.dim() == 4 && tensor.size(0) == 1) factors = 1;
    }

    int64_t blocks_at(const nn::Site& site) const {
        const int64_t blocks = division.blocks_at(site), size = site.linear.in() / blocks;
        const int64_t together = int64_t{1} << (factors - 1);
        if (factors > 1 && (blocks % together != 0 || size % 2 != 0))
            fail(ErrorKind::usage,
                 "--factors: {} factors need an even block width and a multiple of {} blocks, but {} has {} "
                 "blocks of {}",
                 factors, together, site.name(), blocks, size);
        return blocks;
    }
};

class Boft : public Adapter {
  public:
    Boft(const BoftOptions& options, const MethodContext& context)
        : options_(options), rotations_(context.model) {
        options.division.check(context, BoftOptions().division);
        for (const nn::Site* site : context.sites) {
            const int64_t blocks = options.blocks_at(*site), size = site->linear.in() / blocks;
            auto& [r, s, moves] = rotations_[*site];
            r = context.parameters.add(parameter_name(*site, "boft_R"),
                                       at::zeros({options.factors, blocks, size, size}));
            s = context.parameters.add(parameter_name(*site, "boft_s"), at::ones({site->linear.out(), 1}));
            for (int64_t factor = 1; factor < options.factors; ++factor)
                moves.push_back(butterfly(site->linear.in(), size, factor, context.model.device()));
        }
    }

    nn::SiteForms forms(const nn::Site& site, const nn::Pass& pass) override {
        const auto& [r, s, moves] = rotations_[site];
        const auto skew = (r - r.transpose(2, 3)) / 2;
        auto q = ops::cayley(skew.flatten(0, 1)).view(r.sizes());
        if (pass.training && options_.dropout > 0)
            q = with_dropped_blocks(q, pass.stream(site.index, "blocks"));
        nn::SiteForms forms;
        for (int64_t factor = options_.factors - 1; factor >= 0; --factor) {
            const Move* move = factor > 0 ? &moves[static_cast<size_t>(factor) - 1] : nullptr;
            if (move) forms.pre.emplace_back(move->there);
            forms.pre.emplace_back(nn::BlockDiagonal{q[factor]});
            if (move) forms.pre.emplace_back(move->back);
        }
        forms.post.emplace_back(nn::Scale{s.squeeze(1)});
        return forms;
    }

    // PEFT wants one of the two numbers alone.
    void to_config(nlohmann::json& config) const override {
        if (options_.division.count > 0) config["boft_block_size"] = 0;
    }

  private:
    struct Move {
        nn::Permute there, back;
    };
    struct Rotations {
        Tensor r, s;
        std::vector<Move> moves;  // of the second factor, the third, ...: the first one moves nothing
    };

    static Move butterfly(int64_t width, int64_t size, int64_t factor, at::Device device) {
        const int64_t halves = int64_t{2} << factor;  // half-blocks among which one moves
        const auto back = at::arange(width, at::TensorOptions(device).dtype(at::kLong))
                              .view({-1, halves / 2, 2, size / 2})
                              .transpose(1, 2)
                              .reshape({width});
        return {{back.argsort()}, {back}};
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
        return at::where(kept.to(q.device()), q, at::eye(q.size(3), q.options()));
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
            make_options_with_bias<BoftOptions>,
            make_adapter_with_bias<Boft, BoftOptions>,
            ignores};
}

}  // namespace ether::methods
