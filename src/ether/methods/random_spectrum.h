// RandomSpectrum: a matrix (out, in) for each adapted layer that is zero but for n trained values at random
// places: what methods train that describe a weight's change in another domain.
#pragma once

#include <map>
#include <type_traits>
#include <utility>

#include "ether/methods/method.h"
#include "ether/methods/targets.h"

namespace ether::methods {

struct SpectrumOptions : MethodOptions {
    SpectrumOptions(int64_t frequencies, double scaling, double largest_scaling)
        : frequencies(frequencies), scaling(scaling), largest_scaling(largest_scaling) {}

    int64_t frequencies, seed = 777;
    NumbersByName frequency_pattern;
    double scaling;
    const double largest_scaling;
    const char* pattern_form = kPathEnd;

    Fields fields() override;
};

class RandomSpectrum {
  public:
    // Registers each layer's values, (n), under `name`; start(site, n): a layer's first values. Places are
    // those of PEFT for the same seed, alike in layers with as many entries.
    template <typename Start>
    RandomSpectrum(const SpectrumOptions& options, const MethodContext& context, const char* name,
                   Start&& start)
        : sites_(context.model) {
        draw_places(options, context);
        for (const nn::Site* site : context.sites) {
            auto& [places, values] = sites_[*site];
            values = context.parameters.add(parameter_name(*site, name), start(*site, places.size(0)));
        }
    }

    // (n): row-major in W, on the CPU; and what is trained there.
    const at::Tensor& places(const nn::Site& site) const { return sites_[site].places; }
    const at::Tensor& values(const nn::Site& site) const { return sites_[site].values; }

    // What make(site, places) says of each layer, asked once for all layers that have the same places.
    template <typename Make>
    auto from_places(const MethodContext& context, Make&& make) const {
        using Made = std::invoke_result_t<Make, const nn::Site&, const at::Tensor&>;
        std::map<std::pair<const void*, int64_t>, Made> made;  // by the places and a row's width
        BySite<Made> result(context.model);
        for (const nn::Site* site : context.sites) {
            const std::pair key(places(*site).unsafeGetTensorImpl(), site->linear.in());
            auto found = made.find(key);
            if (found == made.end()) found = made.emplace(key, make(*site, places(*site))).first;
            result[*site] = found->second;
        }
        return result;
    }

  private:
    struct Entries {
        at::Tensor places, values;
    };
    void draw_places(const SpectrumOptions& options, const MethodContext& context);

    BySite<Entries> sites_;
};

}  // namespace ether::methods
