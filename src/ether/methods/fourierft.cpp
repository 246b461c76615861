// FourierFT (Gao et al., arXiv 2405.03003): W + scaling * Re(inverse 2D Fourier transform of S), where S
// (out, in) is zero but for n trained entries at places drawn once. It does not start as the base: entries
// are N(0, 1). Keys, defaults and places as in PEFT's fourierft tuner, which draws these from torch's
// generator and does not save them.
#include <ATen/Functions.h>

#include "ether/methods/biases.h"
#include "ether/methods/methods.h"
#include "ether/methods/random_spectrum.h"

namespace ether::methods {
namespace {

struct FourierftOptions : SpectrumOptions {
    static constexpr const char* kBiasOnly = "fourier_only";

    FourierftOptions() : SpectrumOptions(1000, 150, 1e6) { pattern_form = kPathEndUngrouped; }
};

class Fourierft : public Adapter {
  public:
    Fourierft(const FourierftOptions& options, const MethodContext& context)
        : scaling_(options.scaling),
          spectrum_(options, context, "fourierft_spectrum",
                    [&](const nn::Site& site, int64_t count) {
                        return normal({count}, 1, context.random.stream(site.name()));
                    }),
          halves_(spectrum_.from_places(context, half_of)) {}

    nn::SiteForms forms(const nn::Site& site, const nn::Pass&) override {
        const auto change = [half = halves_[site], scale = scaling_ / 2, out = site.linear.out(),
                             in = site.linear.in()](const std::vector<at::Tensor>& of) {
            const auto parts = of[0].index_select(0, half.value) * scale;
            const auto sums =
                at::zeros({out * (in / 2 + 1)}, of[0].options()).index_add(0, half.place, parts);
            return at::fft_irfft2(sums.view({out, -1}), at::OptionalIntArrayRef({out, in}));
        };
        return dense(site, {spectrum_.values(site)}, change);
    }

  private:
    // The real part of S's transform is that of (S + S mirrored) / 2, whose columns up to the middle say all.
    struct Half {
        at::Tensor place, value;  // (k): row-major in (out, in / 2 + 1), and which trained value is there
    };
    static Half half_of(const nn::Site& site, const at::Tensor& places) {
        const int64_t out = site.linear.out(), in = site.linear.in(), kept = in / 2 + 1;
        std::vector<at::Tensor> at, values;
        auto add = [&](const at::Tensor& row, const at::Tensor& column) {
            const auto inside = column.lt(kept).nonzero().squeeze(1);
            at.push_back((row * kept + column).index_select(0, inside));
            values.push_back(inside);
        };
        const auto row = places.div(in, "floor"), column = places.remainder(in);
        add(row, column);
        add((-row).remainder(out), (-column).remainder(in));
        const auto device = site.linear.weight.device();
        return {at::cat(at).to(device), at::cat(values).to(device)};
    }

    double scaling_;
    RandomSpectrum spectrum_;
    BySite<Half> halves_;
};

bool ignores(const std::string& key, const nlohmann::json&) { return key == "init_weights"; }

}  // namespace

Method fourierft() {
    return {"fourierft",
            "FOURIERFT",
            "a few frequencies of a change of the whole weight",
            5e-2,
            true,
            make_options_with_bias<FourierftOptions>,
            make_adapter_with_bias<Fourierft, FourierftOptions>,
            ignores};
}

}  // namespace ether::methods
