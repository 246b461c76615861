// C3A, circular convolution adaptation (Chen et al., arXiv 2407.19342): an addition to W made of (out/b)
// (in/b) circulant blocks, each given by b values: block[p, q] = kernel[(q - p) mod b] / in. The kernels
// start xavier-uniform, so that the adapter does not start as the base. Keys and shapes as in PEFT's c3a
// tuner, whose gradient of x is not that of its function; ours is. PEFT's default of b is 256, and an error
// where that divides no width.
#include <ATen/Functions.h>

#include <cmath>
#include <map>
#include <nlohmann/json.hpp>

#include "ether/methods/biases.h"
#include "ether/methods/methods.h"
#include "ether/methods/site_numbers.h"

namespace ether::methods {
namespace {

using at::Tensor;

constexpr int64_t kLargestDefault = 256;

struct C3aOptions : MethodOptions {
    static constexpr const char* kBiasOnly = "c3a_only";

    int64_t block_size = 0;
    NumbersByName block_sizes;

    Fields fields() override {
        return {
            {.name = "block-size",
             .value = &block_size,
             .help = "b, the width of a circulant block; must divide a layer's widths. Larger: fewer values. "
                     "0: the largest that divides all of them, up to 256",
             .low = 0,
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
    C3a(const C3aOptions& options, const MethodContext& context)
        : block_size_(options.block_size ? options.block_size
                                         : common_divisor(context.sites, kLargestDefault)),
          kernels_(context.model) {
        const auto sizes =
            site_numbers(context, "block-size-pattern", options.block_sizes, block_size_, kPathEndUngrouped);
        for (const nn::Site* site : context.sites) {
            const int64_t b = sizes[*site], in = site->linear.in(), out = site->linear.out();
            const char* option = b == block_size_ ? "block-size" : "block-size-pattern";
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

    void to_config(nlohmann::json& config) const override { config["block_size"] = block_size_; }

  private:
    const int64_t block_size_;
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
            make_options_with_bias<C3aOptions>,
            make_adapter_with_bias<C3a, C3aOptions>,
            ignores};
}

}  // namespace ether::methods
