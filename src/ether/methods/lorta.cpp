// LoRTA (Hounie et al., arXiv 2410.04060; published code: ihounie/lorta): one tensor of CP rank r holds the
// changes of all attention matrices of all layers. With A (d, r), B (r, d_head), C_h (heads, r), C_m (4, r)
// for q, k, v, o and C_l (layers, r), layer l's matrix m gains s D, where D (d, heads d_head) has head h's
// columns A diag(C_h[h] C_m[m] C_l[l]) B:
//   orientation output  y += s x D    heads along the output (the instruction-tuning code)
//   orientation input   y += s x D^T  heads along the input (the PEFT fork)
// A matrix that fits one alone has that one; of fewer key and value heads (ours) each uses C_h's first rows.
// D is never formed. s = alpha / r, or alpha / sqrt(r).
#include <ATen/Functions.h>

#include <cmath>

#include "ether/core/error.h"
#include "ether/methods/methods.h"
#include "ether/methods/targets.h"

namespace ether::methods {
namespace {

using at::Tensor;

struct LortaOptions : MethodOptions {
    int64_t rank = 8;
    double alpha = 16, dropout = 0, init_scale = 0;
    bool rslora = false;
    std::string orientation = "output", layout = "plain";

    Fields fields() override {
        return {
            rank_field(&rank, "r, of the tensor of all layers"),
            alpha_field(&alpha, "lora_alpha"),
            rslora_field(&rslora),
            {.name = "orientation",
             .value = &orientation,
             .help = "which side of a matrix the heads lie along",
             .choices = {"output", "input"}},
            {.name = "layout",
             .value = &layout,
             .help = "plain, or litgpt: the published instruction-tuning code's order of heads in q, k, v",
             .choices = {"plain", "litgpt"}},
            {.name = "init-scale",
             .value = &init_scale,
             .help = "C starts uniform within sqrt(6 / ((1 + 5 scale^2) r))",
             .low = 0,
             .high = 1e3},
            dropout_field(&dropout, "lora_dropout"),
        };
    }
};

class Lorta : public Adapter {
  public:
    Lorta(const LortaOptions& options, const MethodContext& context)
        : options_(options), shape_(context.model.shape()), matrix_(context.model) {
        const auto r = static_cast<double>(options.rank);
        scale_ = lora_scale(options.alpha, options.rank, options.rslora);
        if (options.layout == "litgpt" &&
            (shape_.kv_heads != shape_.heads || options.orientation != "output"))
            fail(ErrorKind::usage,
                 "--layout litgpt: needs as many key and value heads as heads, and --orientation output");
        for (const nn::Site* site : context.sites) {
            const int64_t place = place_in_block(*site, context.model), in = site->linear.in(),
                          out = site->linear.out();
            auto fits = [&](int64_t model_side, int64_t head_side) {
                return model_side == shape_.hidden_size && head_side % shape_.head_dim == 0 &&
                       head_side <= shape_.heads * shape_.head_dim;
            };
            const bool by_output = fits(in, out), by_input = fits(out, in);
            if (place < 0 || place > 3 || (!by_output && !by_input))
                fail(ErrorKind::usage,
                     "--targets: {} is no attention matrix of a block; lorta adapts q, k, v and o alone "
                     "(--targets "
                     "attention)",
                     site->name());
            matrix_[*site] = {place, by_input && (!by_output || options.orientation == "input")};
        }
        const double bound = std::sqrt(6 / ((1 + 5 * options.init_scale * options.init_scale) * r));
        auto factor = [&](const char* name, int64_t rows) {
            return context.parameters.add(name,
                                          uniform({rows, options.rank}, bound, context.random.stream(name)));
        };
        a_ = context.parameters.add("lorta_A", uniform({shape_.hidden_size, options.rank}, 1 / std::sqrt(r),
                                                       context.random.stream("lorta_A")));
        b_ = context.parameters.add("lorta_B", at::zeros({options.rank, shape_.head_dim}));
        heads_ = factor("lorta_C_h", shape_.heads);
        matrices_ = factor("lorta_C_m", 4);
        layers_ = factor("lorta_C_l", shape_.layers);
    }

    nn::SiteForms forms(const nn::Site& site, const nn::Pass&) override {
        const auto& [matrix, heads_on_input] = matrix_[site];
        const int64_t width = heads_on_input ? site.linear.in() : site.linear.out();
        // (heads, d_head, r) as (width, r).
        const auto spread =
            (head_factors(matrix, width / shape_.head_dim) * layers_[site.layer]).unsqueeze(1) * b_.t();
        const auto heads = spread.reshape({width, options_.rank});
        return heads_on_input ? low_rank(heads.t(), a_, scale_, options_.dropout)
                              : low_rank(a_.t(), heads, scale_, options_.dropout);
    }

  private:
    struct Matrix {
        int64_t index = 0;  // q, k, v, o
        bool heads_on_input = false;
    };

    // C_h C_m of each of the matrix's heads, (count, r).
    Tensor head_factors(int64_t matrix, int64_t count) const {
        if (options_.layout == "plain" || matrix == 3) return heads_.narrow(0, 0, count) * matrices_[matrix];
        // That code lays q's, k's and v's heads out one after the other, and adds them to rows that are
        // ordered by head: what stands at 3 h + m is matrix floor(. / heads)'s head (. mod heads).
        const auto slot = 3 * at::arange(count, heads_.options().dtype(at::kLong)) + matrix;
        return heads_.index_select(0, slot.remainder(count)) *
               matrices_.index_select(0, slot.div(count, "floor"));
    }

    const LortaOptions options_;
    const nn::ModelShape shape_;
    double scale_;
    Tensor a_, b_, heads_, matrices_, layers_;
    BySite<Matrix> matrix_;
};

}  // namespace

Method lorta() {
    return {"lorta",
            "LORTA",
            "one low-rank tensor for the attention matrices of all layers",
            2e-2,
            true,
            make_options<LortaOptions>,
            make_adapter<Lorta, LortaOptions>,
            ignores_nothing,
            "attention"};
}

}  // namespace ether::methods
