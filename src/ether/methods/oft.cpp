// OFT, orthogonal finetuning (Qiu et al., arXiv 2306.07280): a layer's input is rotated block by block, x_i
// R_i with R = (I - S)(I + S)^-1 for a skew-symmetric S (Cayley), or, PEFT's default, the first terms of (I +
// S)(I - S)^-1, the opposite rotation (Cayley-Neumann, arXiv 2506.19847): t terms are I + 2S + 2S^2 + ... +
// 2S^(t-2) + S^(t-1). Trained values: S's upper triangles by rows, (in / b, b (b - 1) / 2), or one for all
// blocks (block_share). Keys, shapes and defaults as in PEFT's oft tuner.
#include <ATen/Functions.h>

#include <nlohmann/json.hpp>

#include "ether/core/error.h"
#include "ether/methods/biases.h"
#include "ether/methods/block_division.h"
#include "ether/methods/methods.h"
#include "ether/ops/cayley/cayley.h"

namespace ether::methods {
namespace {

using at::Tensor;

struct OftOptions : MethodOptions {
    static constexpr const char* kBiasOnly = "oft_only";

    BlockDivision division{.size = 32};
    int64_t terms = 5;
    bool share = false, neumann = true;

    Fields fields() override {
        return {
            division.size_field("oft_block_size"),
            division.count_field("r"),
            {.name = "block-share", .value = &share, .help = "one rotation for all blocks of a layer"},
            {.name = "cayley-neumann",
             .value = &neumann,
             .help = "a short series in place of the inverse; no longer quite orthogonal",
             .key = "use_cayley_neumann"},
            {.name = "cayley-neumann-terms",
             .value = &terms,
             .help = "terms of that series",
             .low = 1,
             .high = 100,
             .key = "num_cayley_neumann_terms"},
        };
    }

    void from_config(nlohmann::json& config) override {
        if (config.value("coft", nlohmann::json(false)) == true)
            fail(ErrorKind::adapter,
                 "adapter_config.json: coft = true: PEFT shrinks such an adapter's rotations anew at every "
                 "pass, so that it has no one function; set it to false to read them as they were saved");
    }

    // As PEFT reads a file's settings: what does not divide the width is moved to the nearest that does.
    int64_t blocks_of(const nn::Site& site, bool loading) const {
        auto fitting = division;
        auto& given = division.count > 0 ? fitting.count : fitting.size;
        if (loading && given > 0) given = nearest_divisor(site.linear.in(), given);
        return fitting.blocks_at(site);
    }

  private:
    static int64_t nearest_divisor(int64_t width, int64_t wanted) {
        if (wanted >= width) return width;
        int64_t lower = wanted, higher = wanted;
        while (width % lower != 0) --lower;
        while (width % higher != 0) ++higher;
        return wanted - lower <= higher - wanted ? lower : higher;
    }
};

class Oft : public Adapter {
  public:
    Oft(const OftOptions& options, const MethodContext& context)
        : options_(options), rotations_(context.model) {
        options.division.check(context, OftOptions().division);
        check_counts(context, !options.neumann && options.terms != OftOptions().terms,
                     "--cayley-neumann-terms", "--cayley-neumann");
        for (const nn::Site* site : context.sites) {
            const int64_t blocks = options.blocks_of(*site, context.loading),
                          size = site->linear.in() / blocks;
            rotations_[*site] = {
                context.parameters.add(parameter_name(*site, "oft_R.weight"),
                                       at::zeros({options.share ? 1 : blocks, size * (size - 1) / 2})),
                size};
        }
    }

    nn::SiteForms forms(const nn::Site& site, const nn::Pass&) override {
        const auto& [values, size] = rotations_[site];
        nn::SiteForms forms;
        forms.pre.emplace_back(nn::BlockDiagonal{rotations(values, size)});
        return forms;
    }

    // PEFT wants one of the two numbers alone.
    void to_config(nlohmann::json& config) const override {
        if (options_.division.count > 0) config["oft_block_size"] = 0;
    }

  private:
    struct Rotations {
        Tensor values;  // (blocks or 1, size (size - 1) / 2)
        int64_t size;
    };

    // (n, size, size), each to be multiplied by rows from the left.
    Tensor rotations(const Tensor& values, int64_t size) const {
        const auto places = at::triu_indices(size, size, 1, values.options().dtype(at::kLong));
        const auto triangles = at::zeros({values.size(0), size * size}, values.options())
                                   .index_copy(1, places[0] * size + places[1], values)
                                   .view({values.size(0), size, size});
        const auto skew = triangles - triangles.transpose(1, 2);
        if (!options_.neumann) return ops::cayley(skew);
        return ops::cayley_neumann(skew,
                                   options_.terms == 3 ? 3 : options_.terms - 1);  // PEFT's three are four
    }

    const OftOptions options_;
    BySite<Rotations> rotations_;
};

// How a new adapter would start, what never acts in PEFT, and a constraint that is off.
bool ignores(const std::string& key, const nlohmann::json&) {
    return key == "init_weights" || key == "module_dropout" || key == "eps" || key == "coft";
}

}  // namespace

Method oft() {
    return {"oft",
            "OFT",
            "rotations of a layer's input, block by block",
            1e-3,
            true,
            make_options_with_bias<OftOptions>,
            make_adapter_with_bias<Oft, OftOptions>,
            ignores};
}

}  // namespace ether::methods
