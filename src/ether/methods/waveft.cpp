// WaveFT (Bilican et al., arXiv 2505.12532): an addition to W that has few entries in a wavelet domain: n
// trained values at random places of a matrix (out, in), brought back by one level of the inverse Haar
// transform. Places are the first n of a permutation drawn from a seed, the same for every layer of a size.
// The values start at zero. Keys, defaults and places as in PEFT's waveft tuner, of whose wavelets this is
// db1.
#include <ATen/Functions.h>

#include <nlohmann/json.hpp>

#include "ether/methods/methods.h"
#include "ether/methods/random_spectrum.h"

namespace ether::methods {
namespace {

using at::Tensor;

struct WaveftOptions : SpectrumOptions {
    WaveftOptions() : SpectrumOptions(2592, 25, 1e9) {}

    bool idwt = true;

    Fields fields() override {
        auto fields = SpectrumOptions::fields();
        fields.push_back({.name = "use-idwt",
                          .value = &idwt,
                          .help = "transform the values; else they are added to W where they stand"});
        return fields;
    }
};

class Waveft : public Adapter {
  public:
    Waveft(const WaveftOptions& options, const MethodContext& context)
        : scaling_(options.scaling),
          idwt_(options.idwt),
          spectrum_(options, context, "waveft_spectrum",
                    [](const nn::Site&, int64_t count) { return at::zeros({count}); }) {}

    nn::SiteForms forms(const nn::Site& site, const nn::Pass&) override {
        const auto entries = spectrum_.matrix(site);
        return dense(scaling_ * (idwt_ ? inverse_haar(entries) : entries));
    }

  private:
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

    double scaling_;
    bool idwt_;
    RandomSpectrum spectrum_;
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
