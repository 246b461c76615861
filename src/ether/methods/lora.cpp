// LoRA (Hu et al., arXiv 2106.09685): W + s B A with A (r, in), B (out, r) and s = alpha / r, or
// alpha / sqrt(r) (rsLoRA, arXiv 2312.03732). DoRA (Liu et al., arXiv 2402.09353) gives each row of that sum
// a trained norm m, which starts as W's: diag(m / |W + s B A|) (W + s B A), the norms constant in backward
// (section 4.3). Starts (lora_starts.h) whose B0 A0 is not zero train W + s (B A - B0 A0), which is PEFT's
// change of the base, but on a base that stays as it is: their files hold [A; A0] and [B, -B0], a LoRA of
// rank 2 r that needs nothing else. The table of word embeddings is adapted as a linear layer of unit vectors
// is, with A zero and B normal at the start. Keys and defaults as in PEFT's lora tuner.
#include <ATen/Functions.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>

#include "ether/core/error.h"
#include "ether/core/near_name.h"
#include "ether/core/utf8.h"
#include "ether/methods/biases.h"
#include "ether/methods/eva.h"
#include "ether/methods/lora_starts.h"
#include "ether/methods/methods.h"
#include "ether/methods/site_numbers.h"
#include "ether/methods/targets.h"
#include "ether/methods/trained_tokens.h"

namespace ether::methods {
namespace {

using at::Tensor;

struct LoraOptions : MethodOptions {
    int64_t rank = 8;
    double alpha = 16, dropout = 0;
    bool rslora = false, dora = false, lora_bias = false;
    BiasChoice bias{"lora_only"};
    std::string start = kDefaultStart;
    EvaOptions eva;
    NumbersByName ranks, alphas;
    std::vector<int64_t> tokens;
    std::string token_table;  // of a file

    Fields fields() override {
        return {
            rank_field(&rank, "r, the width of A and B"),
            alpha_field(&alpha, "lora_alpha"),
            rank_pattern_field(&ranks),
            alpha_pattern_field(&alphas),
            rslora_field(&rslora),
            {.name = "dora",
             .value = &dora,
             .help = "train the norm of each row of W + s B A, too (DoRA)",
             .key = "use_dora"},
            dropout_field(&dropout, "lora_dropout"),
            bias.field(),
            {.name = "lora-bias", .value = &lora_bias, .help = "a bias behind B, too"},
            {.name = "token-indices",
             .value = &tokens,
             .help = "numbers of tokens whose embeddings to train as well",
             .low = 0,
             .key = "trainable_token_indices"},
            {.name = "init-lora-weights",
             .value = &start,
             .help =
                 "how A and B start: default (kaiming-uniform, 0), gaussian, orthogonal, from the training "
                 "data: eva, from W: pissa, pissa_niter_4 (faster), olora, or from W with B as it is: mica"},
            {.name = "eva-rho",
             .value = &eva.rho,
             .help = "eva: how many times its rank a layer may get, at others' cost",
             .low = 1,
             .high = 1000},
            {.name = "eva-whiten",
             .value = &eva.whiten,
             .help = "eva: directions over the root of their singular value"},
        };
    }

    // What a trained adapter's start says is nothing, or by how much PEFT has changed the base.
    void from_config(nlohmann::json& config) override {
        if (!config.contains("lora_alpha")) alpha = 8;  // PEFT's default, of a file that does not tell
        // A list of tokens, or that of each table.
        if (auto& indices = config["trainable_token_indices"]; indices.is_object() && !indices.empty()) {
            if (indices.size() > 1)
                fail(ErrorKind::adapter,
                     "adapter_config.json: trainable_token_indices names {} tables; trained tokens of one, "
                     "the word "
                     "embeddings, can be read",
                     indices.size());
            token_table = indices.begin().key();
            indices = nlohmann::json(*indices.begin());
        }
        auto& value = config["init_lora_weights"];
        auto name = value.is_string() ? value.get<std::string>() : "";
        std::transform(name.begin(), name.end(), name.begin(),
                       [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
        if (name == "olora" || name == "pissa" || name == kMica) {
            value = name;
            return;
        }
        constexpr std::array<std::string_view, 4> kLeaveTheBase = {"", "gaussian", "orthogonal", kEva};
        if (std::find(kLeaveTheBase.begin(), kLeaveTheBase.end(), name) == kLeaveTheBase.end())
            fail(ErrorKind::adapter,
                 "adapter_config.json: init_lora_weights = \"{}\": PEFT has changed the base's weights in a "
                 "way "
                 "that this file does not tell; save the adapter with PEFT's "
                 "path_initial_model_for_weight_conversion, or merge it there",
                 printable(name, 40));
        value = kDefaultStart;
    }
    // Others are written as the plain LoRA that they are (Lora::to_config).
    void to_config(nlohmann::json& config) const override {
        bias.to_config(config);
        for (const char* key : {"eva_rho", "eva_whiten"}) config.erase(key);
        const bool is_peft_name = start == "gaussian" || start == "orthogonal" || start == kMica;
        config["init_lora_weights"] = is_peft_name ? nlohmann::json(start) : nlohmann::json(true);
    }

    // What PEFT made of the base's output layer, which it saves beside the adapter, is made anew.
    void from_tensors(io::NamedTensors& tensors) override {
        if (moves_base(start))
            std::erase_if(tensors, [](const auto& entry) { return entry.first.ends_with(kChangedBase); });
    }

  private:
    static constexpr std::string_view kChangedBase = ".base_layer.weight";
};

struct LoraSite {
    Tensor a, b;
    Tensor a0, b0;                // of starts that move the base, else undefined
    double scale = 0, alpha = 0;  // alpha: where eva chose the rank
    Tensor bias;                  // of B, where it has one
    // DoRA's: m (out), and the squared norms of W's rows.
    Tensor magnitude, squares;
};

// The table of embeddings as the weight of a linear layer, (d, V).
Tensor as_weight(const nn::Embeddings& embeddings) { return embeddings.table.t(); }

class Lora : public Adapter {
  public:
    Lora(const LoraOptions& options, const MethodContext& context)
        : options_(options),
          targets_(context.sites),
          sites_(context.model),
          embeddings_(context.model.embeddings()) {
        check_start(options.start);
        check_counts(context, options.dropout > 0 && context.sites.empty(), "--dropout",
                     "a linear layer among --targets");
        check_counts(context, options.start != kEva && options.eva != EvaOptions{}, "--eva-rho, --eva-whiten",
                     "--init-lora-weights eva");
        if (options.lora_bias && (options.dora || options.start != kDefaultStart))
            fail(ErrorKind::usage, "--lora-bias: goes neither with --dora nor with --init-lora-weights");
        const auto ranks = site_numbers(context, "rank-pattern", options.ranks, options.rank);
        const auto alphas = site_numbers(context, "alpha-pattern", options.alphas, options.alpha);
        if (options.start == kEva) {
            add_by_data(ranks.sites, alphas.sites, context);
        } else {
            for (const nn::Site* site : context.sites) {
                const double scale = lora_scale(alphas[*site], ranks[*site], options.rslora);
                const bool is_there = context.loading && options.start == kMica;
                add(*site, scale,
                    lora_start(is_there ? kDefaultStart : options.start, *site, ranks[*site], scale,
                               context.random.stream(site->name())),
                    context);
            }
        }
        if (context.embeddings) add_embeddings(ranks.embeddings, alphas.embeddings, context);
        train_biases(options.bias, targets_, context);
        if (!options.tokens.empty())
            tokens_.emplace(options.tokens, options.token_table, "token_adapter.", context);
    }

    nn::SiteForms forms(const nn::Site& site, const nn::Pass&) override {
        // Dropout acts in the low-rank branch alone. PEFT also drops x before W for the part of DoRA's factor
        // that differs from 1, which takes a second product with W.
        return forms_of(sites_[site], site.linear.weight, options_.dropout);
    }

    nn::SiteForms embedding_forms(const nn::Pass&) override {
        return forms_of(table_, as_weight(embeddings_), 0);
    }

    const nn::TokenRows* tokens(const nn::Pass&) override { return tokens_ ? tokens_->rows() : nullptr; }

    // DoRA takes the norms of W's rows, other starts its largest parts.
    bool reads_weights() const override { return options_.dora || moves_base(); }
    bool reads_bias(const nn::Site& site) const override { return options_.bias.covers(site, targets_); }

    void to_config(nlohmann::json& config) const override {
        if (options_.start == kEva) numbers_to_config(config);
        if (!moves_base()) return;
        // Twice the rank at the same scale.
        const double factor = options_.rslora ? std::sqrt(2.0) : 2;
        config["r"] = 2 * options_.rank;
        config["lora_alpha"] = factor * options_.alpha;
        for (auto& rank : config["rank_pattern"]) rank = 2 * rank.get<int64_t>();
        for (auto& alpha : config["alpha_pattern"]) alpha = factor * alpha.get<double>();
    }

    void to_tensors(io::NamedTensors& tensors) const override {
        if (!moves_base()) return;
        const at::NoGradGuard no_grad;
        std::map<std::string, Tensor> values;
        for (const nn::Site* site : targets_) {
            const auto [a, b] = whole(sites_[*site]);
            values[parameter_name(*site, kA)] = a;
            values[parameter_name(*site, kB)] = b;
        }
        for (auto& [name, tensor] : tensors)
            if (const auto found = values.find(name); found != values.end()) tensor = found->second;
    }

  private:
    static constexpr const char *kA = "lora_A.weight", *kB = "lora_B.weight",
                                *kMagnitude = "lora_magnitude_vector";

    static void check_start(const std::string& start) {
        const auto known = lora_start_names();
        if (pissa_rounds(start) > 0 || std::find(known.begin(), known.end(), start) != known.end()) return;
        fail(ErrorKind::usage,
             "--init-lora-weights: \"{}\" is not known, expected one of {}, pissa_niter_4{}", start,
             fmt::join(known, ", "), did_you_mean(start, known));
    }

    // Ranks as the data ask for; each layer's alpha follows its rank, as in PEFT.
    void add_by_data(const BySite<int64_t>& ranks, const BySite<double>& alphas,
                     const MethodContext& context) {
        const auto starts = eva_starts(context, ranks, options_.eva);
        std::erase_if(targets_, [&](const nn::Site* site) { return !starts[*site].defined(); });
        for (const nn::Site* site : targets_) {
            const auto& a = starts[*site];
            const int64_t rank = a.size(0);
            const double alpha =
                alphas[*site] * static_cast<double>(rank) / static_cast<double>(ranks[*site]);
            add(*site, lora_scale(alpha, rank, options_.rslora), {a, at::zeros({site->linear.out(), rank})},
                context);
            sites_[*site].alpha = alpha;
        }
    }

    // Layers with ranks of their own, and without those that have none.
    void numbers_to_config(nlohmann::json& config) const {
        methods::to_config(targets_, config);
        auto &ranks = config["rank_pattern"] = nlohmann::json::object(),
             &alphas = config["alpha_pattern"] = nlohmann::json::object();
        for (const nn::Site* site : targets_) {
            const auto& lora = sites_[*site];
            if (lora.a.size(0) != options_.rank) ranks[site->name()] = lora.a.size(0);
            if (lora.alpha != options_.alpha) alphas[site->name()] = lora.alpha;
        }
    }

    void add(const nn::Site& site, double scale, const LoraStart& start, const MethodContext& context) {
        auto& lora = sites_[site];
        if (context.loading && moves_base() && site.is_output && context.model.has_tied_output())
            fail(ErrorKind::adapter,
                 "adapter_config.json: init_lora_weights = \"{}\" changed \"{}\", whose weight is the table "
                 "of word embeddings as well; merge the adapter with PEFT (merge_and_unload) and give the "
                 "result as --model",
                 options_.start, site.name());
        lora.scale = scale;
        auto add = [&](const char* name, const Tensor& value, bool trained = true, bool saved = true) {
            return context.parameters.add(parameter_name(site, name), value, nn::ParameterGroup::adapter,
                                          trained, saved);
        };
        lora.a = add(kA, start.a);
        lora.b = add(kB, start.b, /*trained=*/options_.start != kMica);
        if (moves_base()) {
            lora.a0 = add("lora_A.start", start.a.clone(), /*trained=*/false, /*saved=*/false);
            lora.b0 = add("lora_B.start", start.b.clone(), /*trained=*/false, /*saved=*/false);
        }
        if (options_.lora_bias) lora.bias = add("lora_B.bias", at::zeros({site.linear.out()}));
        if (!options_.dora) return;
        lora.squares = row_norms(site.linear.weight).square();
        lora.magnitude = add(kMagnitude, lora.squares.sqrt().to(at::kFloat));
    }

    void add_embeddings(int64_t rank, double alpha, const MethodContext& context) {
        if (moves_base() || options_.start == kEva || options_.start == kMica)
            fail(ErrorKind::usage,
                 "--init-lora-weights {}: is made for linear layers, and \"{}\" is a table of embeddings; "
                 "leave one of them out",
                 options_.start, embeddings_.module());
        if (options_.lora_bias)
            fail(ErrorKind::usage, "--lora-bias: \"{}\" is a table of embeddings, which has no bias",
                 embeddings_.module());
        auto add = [&](const std::string& name, const Tensor& value) {
            return context.parameters.add(embeddings_.module() + "." + name, value);
        };
        const auto weight = as_weight(embeddings_);
        const auto random = context.random.stream(embeddings_.module());
        table_.scale = lora_scale(alpha, rank, options_.rslora);
        table_.a = add("lora_embedding_A", at::zeros({rank, weight.size(1)}));
        table_.b = add("lora_embedding_B", normal({weight.size(0), rank}, 1, random));
        if (!options_.dora) return;
        table_.squares = row_norms(weight).square();
        table_.magnitude = add(kMagnitude, table_.squares.sqrt().to(at::kFloat));
    }

    nn::SiteForms forms_of(const LoraSite& lora, const Tensor& weight, double dropout) const {
        if (!lora.a.defined()) return {};
        Tensor factor, b = lora.b;
        if (lora.magnitude.defined()) {
            factor = lora.magnitude / changed_norms(lora, weight);
            b = factor.unsqueeze(1) * b;
        }
        auto forms = low_rank(lora.a, b, lora.scale, dropout);
        if (moves_base()) {
            const auto b0 = factor.defined() ? factor.unsqueeze(1) * lora.b0 : lora.b0;
            forms.delta.push_back({nn::LowRank{lora.a0, b0, -lora.scale}});
        }
        if (factor.defined()) forms.post.emplace_back(nn::Scale{factor});
        if (lora.bias.defined()) forms.output.emplace_back(nn::Shift{lora.scale * lora.bias});
        return forms;
    }

    bool moves_base() const { return methods::moves_base(options_.start); }

    // Factors of all that is added to W, what was taken from it included.
    std::pair<Tensor, Tensor> whole(const LoraSite& lora) const {
        if (!moves_base()) return {lora.a, lora.b};
        return {at::cat({lora.a, lora.a0}), at::cat({lora.b, -lora.b0}, 1)};
    }

    // |W + s B A| by row, without forming B A: |w|^2 + 2 s (W A^T)_o . b_o + s^2 b_o (A A^T) b_o.
    Tensor changed_norms(const LoraSite& lora, const Tensor& weight) const {
        const at::NoGradGuard no_grad;
        const auto [a, b] = whole(lora);
        const double s = lora.scale;
        const auto wide = weight.to(a.scalar_type());
        const auto product = wide.is_contiguous()  // a table of embeddings lies the other way round
                                 ? nn::apply_form(nn::BlockDiagonal{a.t().unsqueeze(0)}, wide)
                                 : wide.mm(a.t());
        const auto mixed = (product * b).sum(1);
        const auto own = (b.mm(a.mm(a.t())) * b).sum(1);
        return (lora.squares + 2 * s * mixed + s * s * own).clamp_min(0).sqrt();
    }

    const LoraOptions options_;
    std::vector<nn::Site*> targets_;  // but for those that eva gives no rank
    std::optional<TrainedTokens> tokens_;
    BySite<LoraSite> sites_;
    const nn::Embeddings& embeddings_;
    LoraSite table_;  // of these
};

// Settings of features that are off, or of a start.
bool ignores(const std::string& key, const nlohmann::json&) {
    return key == "eva_config" || key == "megatron_core" || key == "qalora_group_size";
}

}  // namespace

Method lora() {
    return {"lora",
            "LORA",
            "low-rank additions B A to a layer's weight (--dora: its rows' norms as well)",
            1e-3,
            true,
            make_options<LoraOptions>,
            make_adapter<Lora, LoraOptions>,
            ignores,
            /*targets=*/"all-linear",
            /*wraps_layers=*/true,
            /*takes_embeddings=*/true};
}

}  // namespace ether::methods
