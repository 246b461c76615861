// RoAd, 2D rotary adaptation (Liao and Monz, arXiv 2409.00119): a layer's outputs, bias included, are rotated
// and scaled in pairs: (alpha cos(theta) y_0 - alpha sin(theta) y_1, alpha cos(theta) y_1 + alpha sin(theta)
// y_0), where y_1 lies half a group after y_0. Variant 1 trains one theta and alpha a pair, 2 one for each
// output, 4 one for each of the four entries. theta starts at 0, alpha at 1. Keys, shapes and defaults as in
// PEFT's road tuner.
#include <ATen/Functions.h>

#include "ether/core/error.h"
#include "ether/methods/methods.h"
#include "ether/methods/targets.h"

namespace ether::methods {
namespace {

using at::Tensor;

struct RoadOptions : MethodOptions {
    std::string variant = "road_1";
    int64_t group_size = 64;

    Fields fields() override {
        return {
            {.name = "variant",
             .value = &variant,
             .help = "values trained for a pair of outputs: 2 (road_1), 4 (road_2) or 8 (road_4)",
             .choices = {"road_1", "road_2", "road_4"}},
            {.name = "group-size",
             .value = &group_size,
             .help = "outputs of a group, whose halves are paired; even, must divide a layer's output",
             .low = 2,
             .high = 1 << 20},
        };
    }
};

class Road : public Adapter {
  public:
    Road(const RoadOptions& options, const MethodContext& context)
        : options_(options), targets_(context.sites), rotations_(context.model) {
        if (options.group_size % 2 != 0)
            fail(ErrorKind::usage, "--group-size: {} is odd; outputs are rotated in pairs",
                 options.group_size);
        for (const nn::Site* site : context.sites) {
            const int64_t out = site->linear.out();
            divided(*site, "output", out, "group-size", options.group_size);
            const int64_t size = options.variant == "road_1"   ? out / 2
                                 : options.variant == "road_2" ? out
                                                               : 2 * out;
            rotations_[*site] = {
                context.parameters.add(parameter_name(*site, "road_theta"), at::zeros({size})),
                context.parameters.add(parameter_name(*site, "road_alpha"), at::ones({size}))};
        }
    }

    nn::SiteForms forms(const nn::Site& site, const nn::Pass&) override {
        const auto& [theta, alpha] = rotations_[site];
        const int64_t half = options_.group_size / 2;
        const bool four = options_.variant == "road_4";
        // (groups, cosine's or sine's, halves, half), where what is shared has size 1.
        const auto shape = std::vector<int64_t>{-1, four ? 2 : 1, options_.variant == "road_1" ? 1 : 2, half};
        auto whole = [&](const Tensor& values, int64_t which) {
            return values.view(shape).select(1, four ? which : 0).expand({-1, 2, -1});
        };
        const auto sign = at::ones({2, 1}, theta.options());
        sign[0].neg_();
        nn::SiteForms forms;
        forms.output.emplace_back(nn::PairRotate{(whole(alpha, 0) * whole(theta, 0).cos()).flatten(),
                                                 (whole(alpha, 1) * whole(theta, 1).sin() * sign).flatten(),
                                                 half});
        return forms;
    }

    void to_config(nlohmann::json& config) const override { name_layers(targets_, config); }

  private:
    struct Rotation {
        Tensor theta, alpha;
    };
    const RoadOptions options_;
    const std::vector<nn::Site*> targets_;
    BySite<Rotation> rotations_;
};

bool ignores(const std::string& key, const nlohmann::json&) { return key == "init_weights"; }

}  // namespace

Method road() {
    return {"road",
            "ROAD",
            "outputs rotated and scaled in pairs",
            1e-2,
            true,
            make_options<RoadOptions>,
            make_adapter<Road, RoadOptions>,
            ignores};
}

}  // namespace ether::methods
