#include "ether/methods/random_spectrum.h"

#include "ether/core/error.h"
#include "ether/methods/site_numbers.h"

namespace ether::methods {

Fields SpectrumOptions::fields() {
    return {
        {.name = "n-frequency",
         .value = &frequencies,
         .help = "n, values trained a layer",
         .low = 1,
         .high = 1e9},
        {.name = "n-frequency-pattern",
         .value = &frequency_pattern,
         .help = "another n for layers whose paths end so: q_proj=500",
         .low = 1,
         .high = 1e9},
        {.name = "scaling",
         .value = &scaling,
         .help = "factor of the change",
         .low = kLeastScale,
         .high = largest_scaling},
        {.name = "random-loc-seed",
         .value = &seed,
         .help = "seed of the places, as in PEFT",
         .low = 0,
         .high = 9e15},
    };
}

void RandomSpectrum::draw_places(const SpectrumOptions& options, const MethodContext& context) {
    const auto counts = site_numbers(context, "n-frequency-pattern", options.frequency_pattern,
                                     options.frequencies, options.pattern_form);
    std::map<std::pair<int64_t, int64_t>, at::Tensor> drawn;  // they depend on these two alone
    for (const nn::Site* site : context.sites) {
        const int64_t entries = site->linear.weight.numel();
        const int64_t count = counts[*site];
        if (count > entries)
            fail(ErrorKind::usage, "--n-frequency{}: {} is more than the {} entries of {}",
                 count == options.frequencies ? "" : "-pattern", count, entries, site->name());
        auto& places = drawn[{entries, count}];
        if (!places.defined()) places = random_places(entries, count, options.seed);
        sites_[*site].places = places;
    }
}

}  // namespace ether::methods
