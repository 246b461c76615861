// WaveFT (Bilican et al., arXiv 2505.12532): an addition to W that has few entries in a wavelet domain: n
// trained values at random places of a matrix (out, in), brought back by one level of the inverse Haar
// transform. Places are the first n of a permutation drawn from a seed, the same for every layer of a size.
// The values start at zero. Keys, defaults and places as in PEFT's waveft tuner, of whose wavelets this is
// db1.
#include <ATen/Functions.h>

#include <cmath>
#include <map>
#include <nlohmann/json.hpp>

#include "ether/core/error.h"
#include "ether/methods/methods.h"

namespace ether::methods {
namespace {

using at::Tensor;

struct WaveftOptions : MethodOptions {
    int64_t frequencies = 2592, seed = 777;
    double scaling = 25;
    bool idwt = true;

    Fields fields() override {
        return {
            {.name = "n-frequency",
             .value = &frequencies,
             .help = "n, values trained a layer",
             .low = 1,
             .high = 1e9},
            {.name = "scaling", .value = &scaling, .help = "factor of the change", .low = 0, .high = 1e9},
            {.name = "random-loc-seed",
             .value = &seed,
             .help = "seed of the places, as in PEFT",
             .low = 0,
             .high = 9e15},
            {.name = "use-idwt",
             .value = &idwt,
             .help = "transform the values; else they are added to W where they stand"},
        };
    }
};

class Waveft : public Adapter {
  public:
    Waveft(const WaveftOptions& options, const MethodContext& context)
        : options_(options), sites_(context.model) {
        std::map<int64_t, Tensor> drawn;  // they depend on the number of entries alone
        for (const nn::Site* site : context.sites) {
            const int64_t entries = site->linear.weight.numel();
            if (options.frequencies > entries)
                fail(ErrorKind::usage, "--n-frequency: {} is more than the {} entries of {}",
                     options.frequencies, entries, site->name());
            auto& places = drawn[entries];
            if (!places.defined()) places = random_places(entries, options.frequencies, options.seed);
            sites_[*site] = {places, context.parameters.add(parameter_name(*site, "waveft_spectrum"),
                                                            at::zeros({options.frequencies}))};
        }
    }

    nn::SiteForms forms(const nn::Site& site, const nn::Pass&) override {
        const auto& [places, spectrum] = sites_[site];
        const int64_t in = site.linear.in(), out = site.linear.out();
        const auto entries =
            at::zeros({out * in}, spectrum.options()).index_put({places}, spectrum).view({out, in});
        return dense(options_.scaling * (options_.idwt ? inverse_haar(entries) : entries));
    }

  private:
    struct Spectrum {
        Tensor places, values;  // (n): row-major in W; trained
    };

    // One level of the inverse transform of a matrix, padded to even sizes: its quarters are the means of
    // each 2 x 2 square, the differences of its rows (right), of its columns (below) and of both.
    static Tensor inverse_haar(const Tensor& entries) {
        const int64_t out = entries.size(0), in = entries.size(1), rows = (out + 1) / 2,
                      columns = (in + 1) / 2;
        const auto quarters = at::constant_pad_nd(entries, {0, 2 * columns - in, 0, 2 * rows - out})
                                  .view({2, rows, 2, columns});
        const auto signs = at::ones({2, 2}, entries.options());
        signs[1][1].neg_();
        const auto squares = at::einsum("pirj,ra,pc->iajc", {quarters, signs, signs}) / 2;
        return squares.reshape({2 * rows, 2 * columns}).narrow(0, 0, out).narrow(1, 0, in);
    }

    const WaveftOptions options_;
    BySite<Spectrum> sites_;
};

// How a new adapter would start, and the one wavelet that is meant.
bool ignores(const std::string& key, const nlohmann::json& value) {
    return key == "init_weights" || (key == "wavelet_family" && value == "db1");
}

}  // namespace

Method waveft() {
    return {"waveft",
            "WAVEFT",
            "a few wavelet coefficients of a change of the whole weight",
            1e-3,
            true,
            make_options<WaveftOptions>,
            make_adapter<Waveft, WaveftOptions>,
            ignores};
}

}  // namespace ether::methods
