#include "ether/methods/delta_dropout.h"

#include <ATen/Functions.h>

namespace ether::methods {

Fields DeltaDropout::fields() {
    return {
        {.name = "rank-dropout",
         .value = &rank,
         .help = "probability that an output's change is left out of a training step",
         .low = 0,
         .high = 0.999},
        {.name = "module-dropout",
         .value = &module,
         .help = "probability that a layer's change is left out of a training step",
         .low = 0,
         .high = 0.999},
    };
}

nn::SiteForms DeltaDropout::operator()(nn::SiteForms forms, const nn::Site& site,
                                       const nn::Pass& pass) const {
    if (!pass.training) return forms;
    if (module > 0 && pass.stream(site.index, "module dropout").uniform(0) < module) return {};
    if (rank == 0) return forms;
    const auto random = pass.stream(site.index, "rank dropout");
    const int64_t out = site.linear.out();
    const auto mask = at::empty({out}, at::kFloat);
    for (int64_t i = 0; i < out; ++i)
        mask.mutable_data_ptr<float>()[i] = random.uniform(static_cast<uint64_t>(i)) < rank ? 0.F : 1.F;
    const double left = mask.mean().item<double>();
    if (left == 0) return {};
    const auto factor = (scaled ? mask / left : mask).to(site.linear.weight.device());
    for (auto& chain : forms.delta) chain.emplace_back(nn::Scale{factor});
    return forms;
}

}  // namespace ether::methods
