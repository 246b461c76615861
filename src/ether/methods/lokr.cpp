// LoKr (Yeh et al., LyCORIS, arXiv 2309.14859): W + (alpha / r) W1 x W2, a Kronecker product: W1 (o1, i1) and
// W2 (o2, i2) with o = o1 o2, i = i1 i2. W2, and with "decompose both" W1, is a product of rank r where r is
// less than half of its larger side. W1 (or its left factor) starts at zero, the rest kaiming-uniform. Never
// built: x as (i1, i2) is multiplied by W2 along its second axis, then by W1 along its first. Keys, shapes
// and defaults as in PEFT's lokr tuner.
#include <ATen/Functions.h>

#include "ether/methods/delta_dropout.h"
#include "ether/methods/methods.h"
#include "ether/methods/site_numbers.h"

namespace ether::methods {
namespace {

using at::Tensor;

struct LokrOptions : MethodOptions {
    int64_t rank = 8, factor = -1;
    double alpha = 8;
    bool both = false;
    NumbersByName ranks, alphas;
    DeltaDropout dropout;

    Fields fields() override {
        Fields fields = {
            rank_field(&rank, "r, the rank of factors that are larger than twice r"),
            alpha_field(&alpha, "alpha"),
            rank_pattern_field(&ranks),
            alpha_pattern_field(&alphas),
            {.name = "decompose-both", .value = &both, .help = "let the smaller factor be of rank r, too"},
            {.name = "decompose-factor",
             .value = &factor,
             .help = "width of the smaller factor, or the largest it may have; -1: near the square root",
             .low = -1,
             .high = 1 << 20},
            {.name = "rank-dropout-scale",
             .value = &dropout.scaled,
             .help = "scale up the outputs that --rank-dropout leaves"},
        };
        const auto more = dropout.fields();
        fields.insert(fields.end(), more.begin(), more.end());
        return fields;
    }

    // PEFT's factorisation of a width into (smaller, larger).
    std::pair<int64_t, int64_t> split(int64_t width) const {
        if (factor > 0 && width % factor == 0) return {factor, width / factor};
        const int64_t limit = factor == -1 ? width : factor;
        int64_t small = 1, large = width;
        while (small < large) {
            int64_t next = small + 1;
            while (width % next != 0) ++next;
            if (next + width / next > small + large || next > limit) break;
            small = next, large = width / next;
        }
        return std::minmax(small, large);
    }
};

// A factor of the product: whole, or of low rank.
struct Kronecker {
    Tensor whole, left, right;

    Tensor value() const { return whole.defined() ? whole : left.mm(right); }
};

// The order that turns features laid out (rows, columns) into (columns, rows).
Tensor transposition(int64_t rows, int64_t columns, at::Device device) {
    return at::arange(rows * columns, at::TensorOptions(device).dtype(at::kLong))
        .view({rows, columns})
        .t()
        .flatten();
}

class Lokr : public Adapter {
  public:
    Lokr(const LokrOptions& options, const MethodContext& context)
        : dropout_(options.dropout), products_(context.model) {
        check_counts(context, options.dropout.scaled && options.dropout.rank == 0, "--rank-dropout-scale",
                     "--rank-dropout");
        const auto ranks = site_numbers(context, "rank-pattern", options.ranks, options.rank);
        const auto alphas = site_numbers(context, "alpha-pattern", options.alphas, options.alpha);
        for (const nn::Site* site : context.sites) {
            const int64_t r = ranks[*site];
            const auto [i1, i2] = options.split(site->linear.in());
            const auto [o1, o2] = options.split(site->linear.out());
            auto factor = [&](const std::string& name, int64_t rows, int64_t columns, bool may_be_low,
                              bool zero) {
                auto add = [&](const std::string& suffix, int64_t m, int64_t n, bool is_zero) {
                    const auto random = context.random.stream(site->name()).stream(name + suffix);
                    return context.parameters.add(
                        parameter_name(*site, name + suffix),
                        is_zero ? at::zeros({m, n}) : kaiming_uniform({m, n}, random));
                };
                if (!may_be_low || 2 * r >= std::max(rows, columns))
                    return Kronecker{add("", rows, columns, zero), {}, {}};
                return Kronecker{{}, add("_a", rows, r, zero), add("_b", r, columns, false)};
            };
            products_[*site] = {
                factor("lokr_w1", o1, i1, options.both, true), factor("lokr_w2", o2, i2, true, false),
                transposition(i1, o2, context.model.device()), transposition(o2, o1, context.model.device()),
                alphas[*site] / static_cast<double>(r)};
        }
    }

    nn::SiteForms forms(const nn::Site& site, const nn::Pass& pass) override {
        const auto& [w1, w2, to_columns, to_rows, scale] = products_[site];
        auto along = [](const Tensor& weight) { return nn::BlockDiagonal{weight.t().unsqueeze(0)}; };
        nn::SiteForms forms;
        forms.delta.push_back(
            {along(w2.value()), nn::Permute{to_columns}, along(w1.value() * scale), nn::Permute{to_rows}});
        return dropout_(std::move(forms), site, pass);
    }

  private:
    struct Product {
        Kronecker w1, w2;
        Tensor to_columns, to_rows;
        double scale = 0;
    };
    const DeltaDropout dropout_;
    BySite<Product> products_;
};

// How a new adapter would start, and what is about convolutions.
bool ignores(const std::string& key, const nlohmann::json&) {
    return key == "init_weights" || key == "use_effective_conv2d";
}

}  // namespace

Method lokr() {
    return {"lokr",
            "LOKR",
            "additions that are a Kronecker product of two small matrices",
            1e-2,
            true,
            make_options<LokrOptions>,
            make_adapter<Lokr, LokrOptions>,
            ignores};
}

}  // namespace ether::methods
