// VB-LoRA (Li et al., arXiv 2405.15179): W + B A, whose rows and columns are cut into pieces of v values,
// each a mixture of vectors of one bank (h, v) that all layers share: sum over the k largest of its h logits
// of softmax(logit) * vector. It does not start as the base: logits are N(0, 0.1^2), the bank is U(-0.02,
// 0.02). Keys and defaults as in PEFT's vblora tuner, but that v is 256 there whether or not it divides the
// widths.
#include <ATen/Functions.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "ether/core/error.h"
#include "ether/methods/biases.h"
#include "ether/methods/methods.h"
#include "ether/nn/weights.h"

namespace ether::methods {
namespace {

using at::Tensor;

constexpr int64_t kLongestDefault = 256;

// What stands in a file in the place of logits, where only the largest are kept: which, and all but the last
// of their softmax.
constexpr std::string_view kIndices = "_topk_indices", kWeights = "_topk_weights";
// Logits that PEFT has as minus infinity: of a vector that was left out, and the least of one that was not.
constexpr double kLeftOut = -1e4, kLeastWeight = 1e-38;

// The smallest type that PEFT has for numbers of so many vectors.
at::ScalarType index_type(int64_t vectors) {
    return vectors < 1 << 8 ? at::kByte : vectors < 1 << 15 ? at::kShort : at::kInt;
}

struct VbloraOptions : MethodOptions {
    static constexpr const char* kBiasOnly = "vblora_only";

    int64_t rank = 4, vectors = 256, length = 0, top = 2;
    double dropout = 0, bound = 0.02, deviation = 0.1;
    bool only_largest = false;

    Fields fields() override {
        return {
            rank_field(&rank, "r, the width of A and B"),
            {.name = "num-vectors", .value = &vectors, .help = "of the shared bank", .low = 1, .high = 4096},
            {.name = "vector-length",
             .value = &length,
             .help =
                 "values of a vector; must divide the layers' widths. 0: as many as divide all of them, up "
                 "to 256",
             .low = 0,
             .high = 1 << 20},
            {.name = "topk", .value = &top, .help = "vectors that a piece mixes", .low = 1, .high = 1 << 16},
            {.name = "init-vector-bank-bound",
             .value = &bound,
             .help = "the bank starts uniform within this bound",
             .low = 0,
             .high = 1e3},
            {.name = "init-logits-std",
             .value = &deviation,
             .help = "standard deviation of the logits at the start",
             .low = 0,
             .high = 1e3},
            dropout_field(&dropout, "vblora_dropout"),
            {.name = "save-only-topk-weights",
             .value = &only_largest,
             .help = "a smaller file, of the mixtures and not their logits; training on from it keeps each "
                     "piece's vectors"},
        };
    }

    void from_tensors(io::NamedTensors& tensors) override {
        if (!only_largest) return;
        io::NamedTensors result;
        for (const auto& [name, tensor] : tensors) {
            if (name.ends_with(kWeights)) continue;
            if (!name.ends_with(kIndices)) {
                result.emplace_back(name, tensor);
                continue;
            }
            const auto logits = name.substr(0, name.size() - kIndices.size());
            const auto wanted = logits + std::string(kWeights);
            const auto found = std::find_if(tensors.begin(), tensors.end(),
                                            [&](const auto& entry) { return entry.first == wanted; });
            const auto indices = tensor.to(at::kLong);
            if (found == tensors.end() || found->second.dim() != 3 || indices.dim() != 3 ||
                found->second.size(0) != indices.size(0) || found->second.size(1) != indices.size(1) ||
                found->second.size(2) != top - 1 || indices.size(2) != top ||
                (indices.numel() > 0 &&
                 (indices.min().item<int64_t>() < 0 || indices.max().item<int64_t>() >= vectors)))
                fail(ErrorKind::adapter,
                     "adapter tensor \"{}\" {} and \"{}\" are not the numbers of {} of {} vectors each, and "
                     "all but one of their weights",
                     name, nn::shape_text(tensor.sizes()), wanted, top, vectors);
            const auto& weights = found->second;
            const auto all = at::cat({weights, 1 - weights.sum(-1, /*keepdim=*/true)}, -1);
            result.emplace_back(logits,
                                at::full({indices.size(0), indices.size(1), vectors}, kLeftOut, all.options())
                                    .scatter(-1, indices, all.clamp_min(kLeastWeight).log()));
        }
        tensors = std::move(result);
    }
};

class Vblora : public Adapter {
  public:
    Vblora(const VbloraOptions& options, const MethodContext& context)
        : options_(options),
          length_(options.length ? options.length : common_divisor(context.sites, kLongestDefault)),
          logits_(context.model) {
        if (options.top > options.vectors)
            fail(ErrorKind::usage, "--topk: {} is more than the {} vectors of --num-vectors", options.top,
                 options.vectors);
        for (const nn::Site* site : context.sites) {
            auto add = [&](const char* name, at::IntArrayRef shape) {
                return context.parameters.add(
                    parameter_name(*site, name),
                    normal(shape, options.deviation, context.random.stream(site->name()).stream(name)));
            };
            logits_[*site] = {add("vblora_logits_A",
                                  {options.rank, pieces(*site, "input", site->linear.in()), options.vectors}),
                              add("vblora_logits_B", {pieces(*site, "output", site->linear.out()),
                                                      options.rank, options.vectors})};
        }
        bank_ = context.parameters.add(
            "vblora_vector_bank",
            uniform({options.vectors, length_}, options.bound, context.random.stream("vector bank")));
    }

    nn::SiteForms forms(const nn::Site& site, const nn::Pass&) override {
        const auto& [a, b] = logits_[site];
        return low_rank(mixed(a).flatten(1), mixed(b).transpose(1, 2).flatten(0, 1), 1, options_.dropout);
    }

    void to_config(nlohmann::json& config) const override { config["vector_length"] = length_; }

    void to_tensors(io::NamedTensors& tensors) const override {
        if (!options_.only_largest) return;
        io::NamedTensors result;
        for (const auto& [name, tensor] : tensors) {
            if (tensor.dim() != 3) {  // the bank
                result.emplace_back(name, tensor);
                continue;
            }
            const auto [largest, indices] = tensor.topk(options_.top);
            result.emplace_back(name + std::string(kIndices), indices.to(index_type(options_.vectors)));
            result.emplace_back(name + std::string(kWeights),
                                largest.softmax(-1).narrow(-1, 0, options_.top - 1).contiguous());
        }
        tensors = std::move(result);
    }

  private:
    struct Logits {
        Tensor a, b;
    };

    int64_t pieces(const nn::Site& site, const char* axis, int64_t width) const {
        return divided(site, axis, width, "vector-length", length_);
    }

    // (m, n, vectors) -> (m, n, length).
    Tensor mixed(const Tensor& logits) const {
        const auto [largest, indices] = logits.topk(options_.top);
        const auto vectors = bank_.index_select(0, indices.flatten()).view({-1, options_.top, length_});
        const auto weights = largest.softmax(-1).view({-1, 1, options_.top});
        return weights.bmm(vectors).view({logits.size(0), logits.size(1), length_});
    }

    const VbloraOptions options_;
    const int64_t length_;
    Tensor bank_;
    BySite<Logits> logits_;
};

}  // namespace

Method vblora() {
    return {"vblora",
            "VBLORA",
            "low-rank additions composed of vectors from one shared bank",
            1e-2,
            true,
            make_options_with_bias<VbloraOptions>,
            make_adapter_with_bias<Vblora, VbloraOptions>,
            ignores_nothing};
}

}  // namespace ether::methods
