// UniPELT (Mao et al., arXiv 2110.07577): LoRA on queries and values, prefix vectors and bottleneck adapters
// in one, each weighed for every text by a gate on what its sublayer reads:
//     q, v: W x + G B A x (no alpha / r)    keys, values: G times the prefix    MLP: f + G (U relu(D z + b) +
//     c)
// with z the block's result norm(x + f) (pfeiffer), or f itself and SiLU, after attention as well (houlsby).
// G is the mean over the text's tokens of sigmoid(w . h_t + b); "central": LoRA's and the prefix's together,
// softmax of the means of relu(w . h_t + b), without adapters. Ours takes the mean over a text's own tokens;
// the published code's includes padding, and so depends on the rest of the batch. Not mergeable.
#include <ATen/Functions.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>

#include "ether/core/error.h"
#include "ether/core/near_name.h"
#include "ether/methods/bottleneck_module.h"
#include "ether/methods/methods.h"
#include "ether/methods/prefix_vectors.h"
#include "ether/methods/targets.h"

namespace ether::methods {
namespace {

using at::Tensor;
using nn::SequenceGate;

struct UnipeltOptions : MethodOptions {
    std::vector<std::string> modules = {"lora", "prefix", "adapter"};
    std::string gates = "own", placement = "pfeiffer";
    int64_t rank = 8, length = 10, projection = 800, size = 48;
    std::optional<double> alpha;
    double dropout = 0;

    Fields fields() override {
        return {
            {.name = "modules", .value = &modules, .help = "which of lora, prefix, adapter there are"},
            {.name = "gates",
             .value = &gates,
             .help = "own: each module's; central: one that divides between lora and prefix; none",
             .choices = {"own", "central", "none"}},
            rank_field(&rank, "r, the width of A and B"),
            {.name = "alpha",
             .value = &alpha,
             .help = "scale where there are no gates: alpha / r; not given: 16",
             .low = kLeastScale,
             .high = 1e6,
             .key = "lora_alpha"},
            dropout_field(&dropout, "lora_dropout"),
            prefix_length_field(&length),
            projection_field(&projection),
            bottleneck_size_field(&size),
            {.name = "placement",
             .value = &placement,
             .help = "of adapters: pfeiffer (after the MLP), houlsby (after attention, too)",
             .choices = {"pfeiffer", "houlsby"}},
        };
    }

    bool has(const char* module) const {
        return std::find(modules.begin(), modules.end(), module) != modules.end();
    }
};

class Unipelt : public Adapter {
  public:
    Unipelt(const UnipeltOptions& options, const MethodContext& context)
        : options_(options), dtype_(context.model.dtype()), loras_(context.model) {
        check(context);
        for (int64_t layer = 0; layer < context.model.shape().layers; ++layer) {
            auto& block = blocks_.emplace_back();
            const auto name = fmt::format("unipelt.{}.", layer);
            if (options.gates == "central") block.central = gate(name + "central_gate", 2, context);
            if (options.has("prefix") && options.gates == "own")
                block.prefix_gate = gate(name + "prefix_gate", 1, context);
            if (!options.has("adapter")) continue;
            if (options.placement == "houlsby") block.attention = adapter(name + "attention", context);
            block.mlp = adapter(name + "mlp", context);
        }
        if (options.has("prefix")) prefix_.emplace("prefix", options.length, options.projection, context);
        if (!options.has("lora")) return;
        for (const nn::Site* site : context.sites) {
            auto& [a, b, own] = loras_[*site];
            a = context.parameters.add(
                parameter_name(*site, "lora_A.weight"),
                kaiming_uniform({options.rank, site->linear.in()}, context.random.stream(site->name())));
            b = context.parameters.add(parameter_name(*site, "lora_B.weight"),
                                       at::zeros({site->linear.out(), options.rank}));
            if (options.gates == "own")
                own = gate(parameter_name(*site, "lora_gate"), 1, context, site->linear.in());
        }
    }

    nn::SiteForms forms(const nn::Site& site, const nn::Pass&) override {
        const auto& [a, b, own] = loras_[site];
        if (!a.defined()) return {};
        if (options_.gates == "none")
            return low_rank(a, b, lora_scale(options_.alpha.value_or(16), options_.rank, false),
                            options_.dropout);
        auto forms = low_rank(a, b, 1, options_.dropout);
        auto& chain = forms.delta.front();
        chain.insert(chain.begin(),
                     own.weight.defined() ? own : blocks_[static_cast<size_t>(site.layer)].central);
        return forms;
    }

    nn::BlockPoints points(int64_t layer, const nn::Pass&) override {
        const auto& block = blocks_[static_cast<size_t>(layer)];
        nn::BlockPoints points;
        if (prefix_) {
            if (layer == 0) vectors_ = prefix_->value().to(dtype_);
            points.extra_kv = [&block, own = vectors_[layer]](const Tensor& x, const nn::Pass& pass) {
                return gated_prefix(block, own, x, pass);
            };
        }
        if (block.attention.module.down.defined())
            points.attn_out = [this, &block](const Tensor& f, const nn::Pass& pass) {
                return f + branch(block.attention, f, pass);
            };
        if (block.mlp.module.down.defined())
            points.mlp_end = [this, &block](const Tensor& f, const nn::BlockPoints::Sublayer& finish,
                                            const nn::Pass& pass) {
                return f + branch(block.mlp, options_.placement == "pfeiffer" ? finish(f) : f, pass);
            };
        return points;
    }

    // The file's adapter has no network before its prefix.
    void to_config(nlohmann::json& config) const override { config["projection"] = 0; }
    void to_tensors(io::NamedTensors& tensors) const override {
        if (prefix_) prefix_->to_tensors(tensors);
    }

  private:
    struct GatedLora {
        Tensor a, b;
        SequenceGate gate;
    };
    struct GatedAdapter {
        BottleneckModule module;
        SequenceGate gate;
    };
    struct Block {
        GatedAdapter attention, mlp;
        SequenceGate prefix_gate, central;
    };

    void check(const MethodContext& context) const {
        const std::vector<std::string> known = {"lora", "prefix", "adapter"};
        for (const auto& module : options_.modules)
            if (std::find(known.begin(), known.end(), module) == known.end())
                fail(ErrorKind::usage, "--modules: \"{}\" is not known, expected some of {}{}", module,
                     fmt::join(known, ", "), did_you_mean(module, known));
        if (options_.modules.empty())
            fail(ErrorKind::usage, "--modules: names none of lora, prefix, adapter");
        if (options_.gates != "none" && options_.alpha && !context.loading)
            fail(
                ErrorKind::usage,
                "--alpha: a gate scales its LoRA, and nothing else does; leave it out, or give --gates none");
        const UnipeltOptions as_it_is;
        check_counts(context,
                     !options_.has("lora") && (options_.rank != as_it_is.rank || options_.dropout > 0),
                     "--rank, --dropout", "lora among --modules");
        check_counts(context,
                     !options_.has("prefix") &&
                         (options_.length != as_it_is.length || options_.projection != as_it_is.projection),
                     "--prefix-length, --projection", "prefix among --modules");
        check_counts(context,
                     !options_.has("adapter") &&
                         (options_.size != as_it_is.size || options_.placement != as_it_is.placement),
                     "--bottleneck-size, --placement", "adapter among --modules");
        // A gate knows a text's end at its beginning.
        if (options_.gates != "none" && context.model.shape().head == nn::Head::causal_lm)
            fail(ErrorKind::usage,
                 "method unipelt: a gate is a mean over the whole text, so a language model would be told "
                 "what it is "
                 "to predict; give --gates none, or --task classify");
        if (options_.gates != "central") return;
        if (!options_.has("lora") || !options_.has("prefix") || options_.has("adapter"))
            fail(ErrorKind::usage,
                 "--gates central: divides between lora and prefix; give --modules lora,prefix");
        constexpr int64_t kReadAttentionsInput = 3;  // q, k, v
        for (const nn::Site* site : context.sites)
            if (const auto place = place_in_block(*site, context.model);
                place < 0 || place >= kReadAttentionsInput)
                fail(
                    ErrorKind::usage,
                    "--gates central: {} does not read what attention reads; name queries, keys or values by "
                    "--targets",
                    site->name());
    }

    SequenceGate gate(const std::string& name, int64_t gates, const MethodContext& context,
                      int64_t width = 0) const {
        if (width == 0) width = context.model.shape().hidden_size;
        return {context.parameters.add(name + ".weight",
                                       kaiming_uniform({gates, width}, context.random.stream(name))),
                context.parameters.add(name + ".bias", at::zeros({gates}))};
    }

    GatedAdapter adapter(const std::string& name, const MethodContext& context) const {
        const auto start = normal({context.model.shape().hidden_size, options_.size}, 0.02,
                                  context.random.stream(name + ".up"));
        GatedAdapter result{BottleneckModule::add(name, options_.size, start, context), {}};
        if (options_.gates == "own") result.gate = gate(name + ".gate", 1, context);
        return result;
    }

    Tensor branch(const GatedAdapter& adapter, const Tensor& z, const nn::Pass& pass) const {
        auto result = adapter.module(z, options_.placement == "pfeiffer" ? "relu" : "silu");
        if (adapter.gate.weight.defined()) {
            const auto& offsets = pass.batch.cu_seqlens;
            result = nn::gated(result, nn::gate_of(adapter.gate, z, offsets), offsets);
        }
        return result.to(z.scalar_type());
    }

    static nn::ExtraKeyValues gated_prefix(const Block& block, const Tensor& own, const Tensor& x,
                                           const nn::Pass& pass) {
        auto gate = block.prefix_gate;
        if (block.central.weight.defined()) gate = block.central, gate.index = 1;
        if (!gate.weight.defined()) return {own[0], own[1]};
        const auto factors =
            nn::gate_of(gate, x, pass.batch.cu_seqlens).to(own.scalar_type()).view({-1, 1, 1});
        return {own[0] * factors, own[1] * factors};
    }

    const UnipeltOptions options_;
    at::ScalarType dtype_;  // of activations
    std::vector<Block> blocks_;
    BySite<GatedLora> loras_;
    std::optional<PrefixVectors> prefix_;
    Tensor vectors_;  // of the pass whose points were asked for last
};

}  // namespace

Method unipelt() {
    return {"unipelt",
            "UNIPELT",
            "low-rank additions, prefix vectors and bottleneck adapters, gated for each text",
            1e-3,
            true,
            make_options<UnipeltOptions>,
            make_adapter<Unipelt, UnipeltOptions>,
            ignores_nothing,
            "query-value"};
}

}  // namespace ether::methods
