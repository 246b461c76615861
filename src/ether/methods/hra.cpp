// HRA, Householder reflection adaptation (Yuan et al., arXiv 2405.17484): a layer's input goes through a
// chain of r reflections, W H_1 ... H_r x with H_k = I - 2 u_k u_k^T / |u_k|^2, u (in, r): r in values a
// layer. Columns start in equal pairs, which cancel out, unless r is odd. With apply_GS the columns are made
// orthonormal first (Q of u = QR, Gram-Schmidt's up to signs, which a reflection does not see): the chain is
// I - 2 QQ^T then. Equal columns have no such Q, so each is drawn by itself there, and the start is not the
// base. Keys, shapes and defaults as in PEFT's hra tuner, which multiplies the weights instead.
#include <ATen/ops/linalg_qr.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "ether/core/error.h"
#include "ether/methods/biases.h"
#include "ether/methods/methods.h"
#include "ether/ops/unit/unit.h"

namespace ether::methods {
namespace {

using at::Tensor;

struct HraOptions : MethodOptions {
    static constexpr const char* kBiasOnly = "hra_only";

    int64_t rank = 8;
    bool orthonormal = false;

    Fields fields() override {
        return {rank_field(&rank, "reflections of a layer's input; even, to start as the base model"),
                {.name = "apply-gs",
                 .value = &orthonormal,
                 .help = "make a layer's directions orthonormal, by Gram-Schmidt",
                 .key = "apply_GS"}};
    }
};

class Hra : public Adapter {
  public:
    Hra(const HraOptions& options, const MethodContext& context)
        : options_(options), directions_(context.model) {
        for (const nn::Site* site : context.sites) {
            const int64_t in = site->linear.in(), rank = options.rank;
            if (options.orthonormal && rank > in)
                fail(ErrorKind::usage,
                     "--rank: {} has no {} orthogonal directions, its input is {} wide; lower --rank",
                     site->name(), rank, in);
            const bool paired = rank % 2 == 0 && !options.orthonormal;
            const auto drawn =
                kaiming_uniform({in, paired ? rank / 2 : rank}, context.random.stream(site->name()));
            directions_[*site] = context.parameters.add(parameter_name(*site, "hra_u"),
                                                        paired ? drawn.repeat_interleave(2, 1) : drawn);
        }
    }

    nn::SiteForms forms(const nn::Site& site, const nn::Pass&) override {
        const auto& u = directions_[site];
        const auto rows = options_.orthonormal ? std::get<0>(at::linalg_qr(u)).t().contiguous()
                                               : ops::unit(u.t().contiguous());
        const auto directions = rows.view({u.size(1), 1, 1, u.size(0)}).unbind();
        nn::SiteForms forms;
        for (auto direction = directions.rbegin(); direction != directions.rend(); ++direction)
            forms.pre.emplace_back(nn::Rank1{*direction, *direction, {-2}});  // the last one meets x first
        return forms;
    }

  private:
    const HraOptions options_;
    BySite<Tensor> directions_;
};

// How a new adapter would start.
bool ignores(const std::string& key, const nlohmann::json&) { return key == "init_weights"; }

}  // namespace

Method hra() {
    return {"hra",
            "HRA",
            "a chain of Householder reflections of a layer's input",
            1e-2,
            true,
            make_options_with_bias<HraOptions>,
            make_adapter_with_bias<Hra, HraOptions>,
            ignores};
}

}  // namespace ether::methods
