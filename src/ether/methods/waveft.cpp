// WaveFT (Bilican et al., arXiv 2505.12532): an addition to W that has few entries in a wavelet domain: n
// trained values at random places of a matrix (out, in), brought back by one level of the inverse Haar
// transform. Places are the first n of a permutation drawn from a seed, the same for every layer of a size.
// The values start at zero. Keys, defaults and places as in PEFT's waveft tuner, of whose wavelets this is
// db1.
#include <ATen/Functions.h>

#include <nlohmann/json.hpp>

#include "ether/methods/biases.h"
#include "ether/methods/methods.h"
#include "ether/methods/random_spectrum.h"

namespace ether::methods {
namespace {

using at::Tensor;

struct WaveftOptions : SpectrumOptions {
    static constexpr const char* kBiasOnly = "waveft_only";

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
                    [](const nn::Site&, int64_t count) { return at::zeros({count}); }),
          changes_(spectrum_.from_places(context, [this](const nn::Site& site, const Tensor& places) {
              return change_of(site, places);
          })) {}

    nn::SiteForms forms(const nn::Site& site, const nn::Pass&) override {
        const auto& [pattern, entry, value, sign] = changes_[site];
        const auto& values = spectrum_.values(site);
        const auto parts = values.index_select(0, value) * (scaling_ * sign);
        const auto sums = at::zeros({pattern->size()}, values.options()).index_add(0, entry, parts);
        return branch(nn::Overlay{{pattern}, sums});
    }

  private:
    // Entry entry[j] of the pattern is the sum of sign[j] * value[j], each one of a layer's trained values.
    struct Change {
        std::shared_ptr<const ops::SparsePattern> pattern;
        Tensor entry, value, sign;
    };

    // By one level of the inverse transform on a matrix padded to even sizes, each value makes a 2 x 2
    // square; the matrix's quarters are the squares' means, differences of rows (right), of columns (below)
    // and both.
    Change change_of(const nn::Site& site, const Tensor& places) const {
        const int64_t out = site.linear.out(), in = site.linear.in();
        const auto row = places.div(in, "floor"), column = places.remainder(in);
        std::vector<Tensor> at, values, signs;
        auto add = [&](const Tensor& to_row, const Tensor& to_column, const Tensor& sign) {
            const auto inside = to_row.lt(out).logical_and(to_column.lt(in)).nonzero().squeeze(1);
            at.push_back((to_row * in + to_column).index_select(0, inside));
            values.push_back(inside);
            signs.push_back(sign.index_select(0, inside));
        };
        const int64_t rows = (out + 1) / 2, columns = (in + 1) / 2;
        if (idwt_) {
            const auto below = row.ge(rows).to(at::kFloat), right = column.ge(columns).to(at::kFloat);
            for (const int64_t a : {0, 1})
                for (const int64_t b : {0, 1})
                    add(2 * row.remainder(rows) + a, 2 * column.remainder(columns) + b,
                        0.5 * (1 - 2 * a * right) * (1 - 2 * b * below));
        } else {
            add(row, column, at::ones({places.size(0)}));
        }
        const auto [entries, entry, counts] = at::_unique2(at::cat(at), /*sorted=*/true, /*inverse=*/true);
        const auto device = site.linear.weight.device();
        return {std::make_shared<ops::SparsePattern>(ops::places_of(entries, in).to(device), out, in),
                entry.to(device), at::cat(values).to(device), at::cat(signs).to(device)};
    }

    double scaling_;
    bool idwt_;
    RandomSpectrum spectrum_;
    BySite<Change> changes_;
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
            make_options_with_bias<WaveftOptions>,
            make_adapter_with_bias<Waveft, WaveftOptions>,
            ignores};
}

}  // namespace ether::methods
