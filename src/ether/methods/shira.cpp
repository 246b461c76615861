// SHiRA, sparse high-rank adapters (Bhardwaj et al., arXiv 2406.13175): single entries of W are changed, as
// many as a LoRA of rank r has values, r (in + out), at random places. The changes start at zero. Keys and
// storage as in PEFT's shira tuner, places too for the same seed.
#include <ATen/Functions.h>

#include <memory>
#include <nlohmann/json.hpp>

#include "ether/core/error.h"
#include "ether/methods/methods.h"
#include "ether/methods/targets.h"

namespace ether::methods {
namespace {

using at::Tensor;

struct ShiraOptions : MethodOptions {
    int64_t rank = 32, seed = 0;

    Fields fields() override {
        return {
            rank_field(&rank, "r: r (in + out) entries of a layer's weight are trained"),
            {.name = "random-seed",
             .value = &seed,
             .help = "seed of the places, as in PEFT",
             .low = 0,
             .high = 9e15},
        };
    }
    void from_config(nlohmann::json& config) override {
        if (config.contains("random_seed") && config["random_seed"].is_null()) config.erase("random_seed");
    }
};

class Shira : public Adapter {
  public:
    Shira(const ShiraOptions& options, const MethodContext& context)
        : targets_(context.sites), entries_(context.model) {
        for (const nn::Site* site : context.sites) {
            const int64_t in = site->linear.in(), out = site->linear.out(), count = options.rank * (in + out);
            if (count > in * out)
                fail(ErrorKind::usage, "--rank: {} means {} entries, more than the {} of {}", options.rank,
                     count, in * out, site->name());
            auto& entries = entries_[*site];
            entries.values =
                context.parameters.add(parameter_name(*site, "shira_weight"), at::zeros({count}));
            // A file has its own.
            const auto places = context.loading
                                    ? at::zeros({count}, at::kLong)
                                    : std::get<0>(random_places(in * out, count, options.seed).sort());
            entries.places =
                context.parameters.add(parameter_name(*site, "shira_indices"), ops::places_of(places, in),
                                       nn::ParameterGroup::adapter, /*trained=*/false);
        }
    }

    nn::SiteForms forms(const nn::Site& site, const nn::Pass&) override {
        auto& entries = entries_[site];
        if (!entries.pattern || entries.version != entries.places._version()) {
            entries.pattern = pattern(site, entries.places);
            entries.version = entries.places._version();
        }
        return branch(nn::Overlay{{entries.pattern}, entries.values});
    }

    void to_config(nlohmann::json& config) const override { name_layers(targets_, config); }

  private:
    struct Entries {
        Tensor values, places;  // (k), (2, k) int32: row and column
        std::shared_ptr<const ops::SparsePattern> pattern;
        int64_t version = 0;  // of the places that the pattern is of
    };

    static std::shared_ptr<const ops::SparsePattern> pattern(const nn::Site& site, const Tensor& places) {
        const auto limits =
            at::tensor({site.linear.out(), site.linear.in()}).to(places.device()).unsqueeze(1);
        if (places.lt(0).logical_or(places.ge(limits)).any().item<bool>())
            fail(ErrorKind::adapter,
                 "the adapter's {}.shira_indices hold a place outside of the weight ({}, {})", site.name(),
                 site.linear.out(), site.linear.in());
        return std::make_shared<ops::SparsePattern>(places, site.linear.out(), site.linear.in());
    }

    const std::vector<nn::Site*> targets_;
    BySite<Entries> entries_;
};

// How the places were chosen, which the file holds, and how the values would start.
bool ignores(const std::string& key, const nlohmann::json&) {
    return key == "init_weights" || key == "mask_type";
}

}  // namespace

Method shira() {
    return {"shira",
            "SHIRA",
            "changes of single entries of a weight at random places",
            1e-3,
            true,
            make_options<ShiraOptions>,
            make_adapter<Shira, ShiraOptions>,
            ignores};
}

}  // namespace ether::methods
