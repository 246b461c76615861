// OFT as the ETHER paper (arXiv 2405.20271) compares itself with it (published code: mwbini/ether): a layer's
// input or output is rotated block by block, Q_i = (I + S_i)(I - S_i)^-1 with S_i = (R_i - R_i^T) / 2. All of
// R (n, d/n, d/n) is stored, zero at the start, though half of it counts. PEFT's OFT (oft.cpp) stores the
// triangle, of the opposite rotation where its inverse is exact.
#include <ATen/Functions.h>

#include "ether/core/error.h"
#include "ether/methods/methods.h"
#include "ether/ops/cayley/cayley.h"

namespace ether::methods {
namespace {

using at::Tensor;

struct OftPaperOptions : MethodOptions {
    int64_t blocks = 16;
    std::string side = "input", layout = "block-diagonal";

    Fields fields() override {
        return {
            {.name = "blocks",
             .value = &blocks,
             .help = "pieces n of the rotated axis; must divide it",
             .low = 1,
             .high = 1 << 20},
            {.name = "side",
             .value = &side,
             .help = "what is rotated: a layer's input or output",
             .choices = {"input", "output"}},
            {.name = "layout",
             .value = &layout,
             .help = "block-diagonal as in the paper, or official: the published code's reading of W's "
                     "memory, of inputs",
             .choices = {"block-diagonal", "official"}},
        };
    }
};

class OftPaper : public Adapter {
  public:
    OftPaper(const OftPaperOptions& options, const MethodContext& context)
        : options_(options), blocks_(context.model) {
        for (const nn::Site* site : context.sites) {
            const bool input = options.side == "input";
            const int64_t size =
                divided(*site, options.side.c_str(), input ? site->linear.in() : site->linear.out(), "blocks",
                        options.blocks);
            blocks_[*site] = context.parameters.add(parameter_name(*site, "oft_R"),
                                                    at::zeros({options.blocks, size, size}));
        }
    }

    nn::SiteForms forms(const nn::Site& site, const nn::Pass&) override {
        const auto& r = blocks_[site];
        if (options_.side == "input" && options_.layout == "official")
            return dense(site, {r}, [weight = site.linear.weight](const std::vector<Tensor>& of) {
                return official_change(weight, rotations(of[0]) - at::eye(of[0].size(1), of[0].options()));
            });
        nn::SiteForms forms;
        const nn::BlockDiagonal rotation{rotations(r).transpose(1, 2)};  // of x in rows
        (options_.side == "input" ? forms.pre : forms.post).emplace_back(rotation);
        return forms;
    }

    bool reads_weights() const override { return options_.layout == "official"; }

  private:
    static Tensor rotations(const Tensor& r) { return ops::cayley((r.transpose(1, 2) - r) / 2); }

    // The published code reads W (out, in) as (n, out, in/n) without transposing (ether.cpp), and multiplies
    // piece i by Q_i.
    static Tensor official_change(const Tensor& weight, const Tensor& change) {
        const auto pieces = weight.reshape({change.size(0), weight.size(0), change.size(1)});
        return pieces.to(change.scalar_type()).bmm(change).view(weight.sizes());
    }

    const OftPaperOptions options_;
    BySite<Tensor> blocks_;
};

}  // namespace

Method oft_paper() {
    return {"oft-paper",
            "OFT_PAPER",
            "rotations of a layer's input or output by blocks, as the ETHER paper has them",
            1e-3,
            true,
            make_options<OftPaperOptions>,
            make_adapter<OftPaper, OftPaperOptions>,
            ignores_nothing};
}

}  // namespace ether::methods
