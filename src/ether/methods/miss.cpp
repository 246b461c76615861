// MiSS (Kang and Yin, arXiv 2409.15371): every r columns of W (out, in) get the same change D^T: row k of D
// (r, out) is added to the columns k, k + r, k + 2 r, ...: a low-rank change whose A tiles the identity. D is
// zero at the start. "mini" repeats a D (r, m) along the outputs. Keys and defaults as in PEFT's miss tuner.
#include <ATen/ops/arange.h>
#include <ATen/ops/eye.h>
#include <ATen/ops/zeros.h>

#include <nlohmann/json.hpp>

#include "ether/core/error.h"
#include "ether/methods/biases.h"
#include "ether/methods/methods.h"

namespace ether::methods {
namespace {

using at::Tensor;

struct MissOptions : MethodOptions {
    static constexpr const char* kBiasOnly = "MiSS_only";

    int64_t rank = 64, mini_rank = 1;
    double dropout = 0;
    bool mini = false;

    Fields fields() override {
        return {
            rank_field(&rank, "r, the columns that differ in their change; at most a layer's input width"),
            {.name = "mini", .value = &mini, .help = "repeat the change along the outputs, too"},
            {.name = "mini-rank",
             .value = &mini_rank,
             .help = "outputs that differ in their change, with --mini; must divide a layer's output width",
             .low = 1,
             .high = 1 << 20,
             .key = "mini_r"},
            dropout_field(&dropout, "miss_dropout"),
        };
    }
    // PEFT's init_weights says more than how an adapter starts.
    void from_config(nlohmann::json& config) override {
        if (!config.contains("init_weights") || config["init_weights"] == "bat") return;  // "bat" is refused
        mini = config["init_weights"] == "mini";
        config.erase("init_weights");
    }
};

class Miss : public Adapter {
  public:
    Miss(const MissOptions& options, const MethodContext& context)
        : options_(options), blocks_(context.model) {
        check_counts(context, !options.mini && options.mini_rank != 1, "--mini-rank", "--mini");
        for (const nn::Site* site : context.sites) {
            const int64_t in = site->linear.in(), out = site->linear.out();
            if (options.rank > in)
                fail(ErrorKind::usage, "--rank: {} is more than the input width {} of {}", options.rank, in,
                     site->name());
            if (options.mini && out % options.mini_rank != 0)
                fail(ErrorKind::usage, "--mini-rank: {} does not divide the output width {} of {}",
                     options.mini_rank, out, site->name());
            blocks_[*site] =
                context.parameters.add(parameter_name(*site, "miss_block"),
                                       at::zeros({options.rank, options.mini ? options.mini_rank : out}));
        }
    }

    nn::SiteForms forms(const nn::Site& site, const nn::Pass&) override {
        const auto& block = blocks_[site];
        const auto repeated =
            options_.mini ? block.repeat({1, site.linear.out() / options_.mini_rank}) : block;
        const auto tiled =
            at::eye(options_.rank, block.options())
                .index_select(
                    1,
                    at::arange(site.linear.in(), block.options().dtype(at::kLong)).remainder(options_.rank));
        return low_rank(tiled, repeated.t(), 1, options_.dropout);
    }

    void to_config(nlohmann::json& config) const override {
        config.erase("mini");
        if (options_.mini)
            config["init_weights"] = "mini";
        else
            config["init_weights"] = true;
    }

  private:
    const MissOptions options_;
    BySite<Tensor> blocks_;
};

}  // namespace

Method miss() {
    return {"miss",
            "MISS",
            "one change for every r-th column of a layer's weight",
            1e-3,
            true,
            make_options_with_bias<MissOptions>,
            make_adapter_with_bias<Miss, MissOptions>,
            ignores_nothing};
}

}  // namespace ether::methods
