// C3A, circular convolution adaptation (Chen et al., arXiv 2407.19342): an addition to W made of (out/b)
// (in/b) circulant blocks, each given by b values: block[p, q] = kernel[(q - p) mod b] / in. The kernels
// start xavier-uniform, so that the adapter does not start as the base. Keys, shapes and defaults as in
// PEFT's c3a tuner, whose gradient of x is not that of its function; ours is.
#include <ATen/Functions.h>

#include <cmath>
#include <map>

#include "ether/methods/methods.h"
#include "ether/methods/site_numbers.h"

namespace ether::methods {
namespace {

using at::Tensor;

struct C3aOptions : MethodOptions {
    int64_t block_size = 256;
    NumbersByName block_sizes;

    Fields fields() override {
        return {
            {.name = "block-size",
             .value = &block_size,
             .help = "b, the width of a circulant block; must divide a layer's widths. Larger: fewer values",
             .low = 1,
             .high = 1 << 20},
            {.name = "block-size-pattern",
             .value = &block_sizes,
             .help = "another b for layers whose paths end so: q_proj=64",
             .low = 1,
             .high = 1 << 20},
        };
    }
};

class C3a : public Adapter {
  public:
    C3a(const C3aOptions& options, const MethodContext& context) : kernels_(context.model) {
        const auto sizes =
            site_numbers(context, "block-size-pattern", options.block_sizes, options.block_size);
        for (const nn::Site* site : context.sites) {
            const int64_t b = sizes[*site], in = site->linear.in(), out = site->linear.out();
            const char* option = b == options.block_size ? "block-size" : "block-size-pattern";
            const int64_t rows = divided(*site, "output", out, option, b),
                          columns = divided(*site, "input", in, option, b);
            kernels_[*site] = context.parameters.add(
                parameter_name(*site, "c3a_kernel"),
                uniform({rows, columns, b}, std::sqrt(6 / static_cast<double>(in + out)),
                        context.random.stream(site->name())));
            if (auto& around = around_[b]; !around.defined()) {
                const auto place = at::arange(b, at::TensorOptions(context.model.device()).dtype(at::kLong));
                around = (place.unsqueeze(0) - place.unsqueeze(1)).remainder(b).flatten();
            }
        }
    }

    nn::SiteForms forms(const nn::Site& site, const nn::Pass&) override {
        const auto& kernels = kernels_[site];
        const auto change = [around = around_.at(kernels.size(2)),
                             in = static_cast<double>(site.linear.in())](const std::vector<Tensor>& of) {
            const int64_t rows = of[0].size(0), columns = of[0].size(1), b = of[0].size(2);
            const auto blocks = (of[0] / in).index_select(2, around).view({rows, columns, b, b});
            return blocks.transpose(1, 2).reshape({rows * b, columns * b});
        };
        return dense(site, {kernels}, change);
    }

  private:
    std::map<int64_t, Tensor> around_;  // by b, (b b): which value of its kernel a block's entry is
    BySite<Tensor> kernels_;
};

bool ignores(const std::string& key, const nlohmann::json&) { return key == "init_weights"; }

}  // namespace

Method c3a() {
    return {"c3a",
            "C3A",
            "additions made of circulant blocks",
            3e-1,
            true,
            make_options<C3aOptions>,
            make_adapter<C3a, C3aOptions>,
            ignores};
}

}  // namespace ether::methods
