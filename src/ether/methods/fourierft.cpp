// FourierFT (Gao et al., arXiv 2405.03003): W + scaling * Re(inverse 2D Fourier transform of S), where S
// (out, in) is zero but for n trained entries at places drawn once. It does not start as the base: entries
// are N(0, 1). Keys, defaults and places as in PEFT's fourierft tuner, which draws these from torch's
// generator and does not save them.
#include <ATen/Functions.h>

#include <map>

#include "ether/core/error.h"
#include "ether/methods/methods.h"

namespace ether::methods {
namespace {

using at::Tensor;

struct FourierftOptions : MethodOptions {
    int64_t frequencies = 1000, seed = 777;
    double scaling = 150;

    Fields fields() override {
        return {
            {.name = "n-frequency",
             .value = &frequencies,
             .help = "trained frequencies of a layer",
             .low = 1,
             .high = 1e9},
            {.name = "scaling", .value = &scaling, .help = "of the change", .low = 0, .high = 1e6},
            {.name = "random-loc-seed",
             .value = &seed,
             .help = "seed of the frequencies' places, as in PEFT",
             .low = 0,
             .high = 9e15},
        };
    }
};

class Fourierft : public Adapter {
  public:
    Fourierft(const FourierftOptions& options, const MethodContext& context)
        : options_(options), sites_(context.model) {
        std::map<int64_t, Tensor> drawn;  // they depend on the number of entries alone
        for (const nn::Site* site : context.sites) {
            const int64_t entries = site->linear.weight.numel();
            if (options.frequencies > entries)
                fail(ErrorKind::usage, "--n-frequency: {} is more than the {} entries of {}",
                     options.frequencies, entries, site->name());
            auto& places = drawn[entries];
            if (!places.defined()) places = random_places(entries, options.frequencies, options.seed);
            sites_[*site] = {places, context.parameters.add(parameter_name(*site, "fourierft_spectrum"),
                                                            normal({options.frequencies}, 1,
                                                                   context.random.stream(site->name())))};
        }
    }

    nn::SiteForms forms(const nn::Site& site, const nn::Pass&) override {
        const auto& [places, spectrum] = sites_[site];
        const int64_t in = site.linear.in(), out = site.linear.out();
        const auto entries =
            at::zeros({out * in}, spectrum.options()).index_put({places}, spectrum).view({out, in});
        return dense(options_.scaling * at::real(at::fft_ifft2(entries)));
    }

  private:
    struct Spectrum {
        Tensor places, values;  // (n): row-major in W; S's entries
    };
    const FourierftOptions options_;
    BySite<Spectrum> sites_;
};

bool ignores(const std::string& key, const nlohmann::json&) { return key == "init_weights"; }

}  // namespace

Method fourierft() {
    return {"fourierft",
            "FOURIERFT",
            "a few frequencies of a change of the whole weight",
            1e-2,
            true,
            make_options<FourierftOptions>,
            make_adapter<Fourierft, FourierftOptions>,
            ignores};
}

}  // namespace ether::methods
