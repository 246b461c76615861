// Naive, the baseline of the ETHER paper (arXiv 2405.20271, section 5.1): a block-diagonal matrix without any
// constraint in the reflection's place, W(Nx) with N = blockdiag_i(N_i), the identity at the start. Trained
// values: in^2 / n a layer. There is no published code of it.
#include <ATen/ops/eye.h>

#include "ether/methods/methods.h"

namespace ether::methods {
namespace {

struct NaiveOptions : MethodOptions {
    int64_t blocks = 32;

    Fields fields() override {
        return {{.name = "blocks",
                 .value = &blocks,
                 .help = "pieces n of a layer's input; must divide it",
                 .low = 1,
                 .high = 1 << 20}};
    }
};

class Naive : public Adapter {
  public:
    Naive(const NaiveOptions& options, const MethodContext& context) : blocks_(context.model) {
        for (const nn::Site* site : context.sites) {
            const int64_t size = divided(*site, "input", site->linear.in(), "blocks", options.blocks);
            blocks_[*site] = context.parameters.add(parameter_name(*site, "naive_n"),
                                                    at::eye(size).repeat({options.blocks, 1, 1}));
        }
    }

    nn::SiteForms forms(const nn::Site& site, const nn::Pass&) override {
        nn::SiteForms forms;
        forms.pre.emplace_back(nn::BlockDiagonal{blocks_[site].transpose(1, 2)});  // of x in rows
        return forms;
    }

  private:
    BySite<at::Tensor> blocks_;  // (n, in / n, in / n)
};

}  // namespace

Method naive() {
    return {"naive",
            "NAIVE",
            "block-diagonal matrices on a layer's input, the ETHER paper's baseline",
            1e-3,
            true,
            make_options<NaiveOptions>,
            make_adapter<Naive, NaiveOptions>,
            ignores_nothing};
}

}  // namespace ether::methods
