// ETHER and ETHER+ (arXiv 2405.20271, section 3; published code: mwbini/ether). Reflections of activations:
//   ETHER   H  = blockdiag_i(I - 2 û_i û_i^T),             û = u / |u|, u (n, d/n)
//   ETHER+  H+ = blockdiag_i(I - û_i û_i^T + v̂_i v̂_i^T),   v = -u at the start, so H+ starts as the identity
// on a site's input, y = W(Hx) + b, its output, y = H(Wx) + b, or both. Trained values: d per vector and
// side, whatever the number of blocks n.
#include <ATen/Functions.h>

#include <cmath>

#include "ether/core/error.h"
#include "ether/methods/methods.h"
#include "ether/nn/forms.h"
#include "ether/ops/unit/unit.h"

namespace ether::methods {
namespace {

using at::Tensor;

struct EtherOptions : MethodOptions {
    explicit EtherOptions(std::string default_side) : side(std::move(default_side)) {}

    int64_t blocks = 4;
    std::string side;
    std::string layout = "block-diagonal";
    double dropout = 0, block_dropout = 0;

    Fields fields() override {
        return {
            {.name = "blocks",
             .value = &blocks,
             .help = "pieces n of each reflected axis; must divide it",
             .low = 1,
             .high = 1 << 20},
            {.name = "side",
             .value = &side,
             .help = "what is reflected: a layer's input, output, or both",
             .choices = {"input", "output", "both"}},
            {.name = "layout",
             .value = &layout,
             .help =
                 "block-diagonal as in the paper, or official: the published code's reading of W's memory",
             .choices = {"block-diagonal", "official"}},
            {.name = "dropout",
             .value = &dropout,
             .help = "ordinary dropout of a layer's input",
             .low = 0,
             .high = 0.99},
            {.name = "block-dropout",
             .value = &block_dropout,
             .help = "multiplicative dropout: probability that a block is the identity in a training pass",
             .low = 0,
             .high = 0.99},
        };
    }
};

// One side of one site: u, and v for ETHER+.
struct Reflection {
    std::vector<Tensor> vectors;
    Tensor directions;  // û, and v̂, in this pass: (terms, n, d/n)

    // The Rank1 form; `keep` (n, 1), if defined, is 0 where a block is dropped.
    nn::Rank1 form(const Tensor& keep) const {
        return {keep.defined() ? directions * keep : directions, directions,
                vectors.size() == 2 ? std::vector<double>{-1, 1} : std::vector<double>{-2}};
    }
};

class Ether : public Adapter {
  public:
    Ether(const EtherOptions& options, bool plus, const MethodContext& context)
        : options_(options), sides_(context.model) {
        for (const nn::Site* site : context.sites) {
            auto& sides = sides_[*site];
            const bool official = options.layout == "official";
            if (options.side != "output")
                sides.input = reflection(*site, "input", "ether", site->linear.in(), plus, context);
            if (options.side != "input")
                sides.output = reflection(*site, "output", "ether_out", site->linear.out(), plus, context);
            if (official && options.side != "output" && site->linear.weight.scalar_type() == at::kBFloat16)
                fail(ErrorKind::adapter,
                     "{}: layout official needs float32 base weights; load the model with --dtype f32",
                     site->name());
        }
    }

    void begin_pass(const nn::Pass&) override {
        std::vector<Reflection*> all;
        for (auto& sides : sides_)
            for (auto* reflection : {&sides.input, &sides.output})
                if (!reflection->vectors.empty()) all.push_back(reflection);
        std::vector<std::vector<Tensor>> stacks;
        for (const auto* reflection : all) stacks.push_back(reflection->vectors);
        const auto directions = ops::units(stacks);
        for (size_t i = 0; i < all.size(); ++i) all[i]->directions = directions[i];
    }

    nn::SiteForms forms(const nn::Site& site, const nn::Pass& pass) override {
        const auto& sides = sides_[site];
        nn::SiteForms forms;
        forms.input_dropout = options_.dropout;
        if (!sides.output.vectors.empty())
            forms.post.emplace_back(sides.output.form(kept_blocks(site, pass, "output blocks")));
        if (sides.input.vectors.empty()) return forms;
        const auto form = sides.input.form(kept_blocks(site, pass, "input blocks"));
        if (options_.layout == "block-diagonal")
            forms.pre.emplace_back(form);
        else
            forms.delta.push_back({official_delta(site, form, forms.post)});
        return forms;
    }

    bool reads_weights() const override { return options_.layout == "official"; }

  private:
    struct Sides {
        Reflection input, output;
    };

    Reflection reflection(const nn::Site& site, const char* axis, const std::string& key, int64_t width,
                          bool plus, const MethodContext& context) const {
        const int64_t size = divided(site, axis, width, "blocks", options_.blocks);
        // Kaiming-uniform with a = sqrt(5) on (n, d/n), as in the published code.
        const auto u = uniform({options_.blocks, size}, 1 / std::sqrt(static_cast<double>(size)),
                               context.random.stream(site.name()).stream(key));
        Reflection result;
        result.vectors.push_back(context.parameters.add(parameter_name(site, key + "_u"), u));
        if (plus) result.vectors.push_back(context.parameters.add(parameter_name(site, key + "_v"), u.neg()));
        return result;
    }

    Tensor kept_blocks(const nn::Site& site, const nn::Pass& pass, const char* place) const {
        if (!pass.training || options_.block_dropout == 0) return {};
        const auto random = pass.stream(site.index, place);
        auto keep = at::ones({options_.blocks, 1});
        for (int64_t block = 0; block < options_.blocks; ++block)
            if (random.uniform(static_cast<uint64_t>(block)) < options_.block_dropout) keep[block].zero_();
        return keep.to(site.linear.weight.device());
    }

    // The published code reads W (out, in) as (n, out, in/n) without transposing: segment s of output row o
    // meets block i(o, s) = (o n + s) / out. So y_o += sum_s c (W[o,s] . a_i)(a_i . x_s), a low-rank change
    // of rank n^2 a term: row (s, i) of A holds a_i in segment s, and B[o, (s, i)] = W[o,s] . a_i where i =
    // i(o, s), else 0.
    nn::LowRank official_delta(const nn::Site& site, const nn::Rank1& form, const nn::Chain& post) const {
        const int64_t n = options_.blocks, out = site.linear.out(), in = site.linear.in(), size = in / n;
        const auto segments =
            site.linear.weight.reshape({n, out, size});  // (block, flat (o, s) within it, size)
        const auto flat = at::arange(out * n, site.linear.weight.options().dtype(at::kLong));
        const auto row = flat.div(n, "floor"), column = flat.remainder(n) * n + flat.div(out, "floor");
        std::vector<Tensor> a, b;
        for (int64_t term = 0; term < form.right.size(0); ++term) {
            const auto right = form.right[term], left = form.left[term];
            const auto products =
                at::bmm(segments.to(right.scalar_type()), left.unsqueeze(2)).reshape({out * n});
            const double coefficient = form.coefficients[static_cast<size_t>(term)];
            b.push_back(
                at::zeros({out, n * n}, right.options()).index_put({row, column}, products * coefficient));
            a.push_back(at::kron(at::eye(n, right.options()), right));
        }
        const auto b_all = at::cat(b, 1);
        return {at::cat(a, 0), nn::apply_chain(post, b_all.t().contiguous(), {}).t()};
    }

    const EtherOptions options_;
    BySite<Sides> sides_;
};

template <bool plus>
Method ether_method() {
    return {
        plus ? "ether+" : "ether",
        plus ? "ETHER_PLUS" : "ETHER",
        plus ? "relaxed reflections I - uu' + vv' on both sides of a layer; the default"
             : "Householder reflections I - 2uu' of a layer's input; the fewest parameters",
        5e-3,
        true,
        [] {
            return std::unique_ptr<MethodOptions>(std::make_unique<EtherOptions>(plus ? "both" : "input"));
        },
        [](const MethodOptions& options, const MethodContext& context) {
            return std::unique_ptr<Adapter>(
                std::make_unique<Ether>(dynamic_cast<const EtherOptions&>(options), plus, context));
        },
        ignores_nothing};
}

}  // namespace

Method ether() { return ether_method<false>(); }
Method ether_plus() { return ether_method<true>(); }

}  // namespace ether::methods
