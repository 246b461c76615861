// FourierFT (Gao et al., arXiv 2405.03003): W + scaling * Re(inverse 2D Fourier transform of S), where S
// (out, in) is zero but for n trained entries at places drawn once. It does not start as the base: entries
// are N(0, 1). Keys, defaults and places as in PEFT's fourierft tuner, which draws these from torch's
// generator and does not save them.
#include <ATen/Functions.h>

#include "ether/methods/methods.h"
#include "ether/methods/random_spectrum.h"

namespace ether::methods {
namespace {

struct FourierftOptions : SpectrumOptions {
    FourierftOptions() : SpectrumOptions(1000, 150, 1e6) {}
};

class Fourierft : public Adapter {
  public:
    Fourierft(const FourierftOptions& options, const MethodContext& context)
        : scaling_(options.scaling),
          spectrum_(options, context, "fourierft_spectrum", [&](const nn::Site& site, int64_t count) {
              return normal({count}, 1, context.random.stream(site.name()));
          }) {}

    nn::SiteForms forms(const nn::Site& site, const nn::Pass&) override {
        return dense(scaling_ * at::real(at::fft_ifft2(spectrum_.matrix(site))));
    }

  private:
    double scaling_;
    RandomSpectrum spectrum_;
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
