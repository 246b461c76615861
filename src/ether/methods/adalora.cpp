// AdaLoRA (Zhang et al., arXiv 2303.10512): W + alpha / init_r B diag(E) A with A (r, in), B (out, r) N(0,
// 0.02^2) and E (r, 1) zero at the start. While it trains, the least important of all layers' triplets are
// zeroed until target_r a layer are left on average (section 3.2), and the loss gains orth_reg_weight times
// the mean of |A A^T - I| and |B^T B - I| (equation 4). An adapter's file holds the triplets that are left
// and their rank_pattern. Schedule, keys and defaults as in PEFT's adalora tuner, where the scale is alpha /
// (init_r + 1e-5); steps are counted from 1.
#include <ATen/Functions.h>

#include <cmath>
#include <map>
#include <nlohmann/json.hpp>

#include "ether/core/error.h"
#include "ether/methods/biases.h"
#include "ether/methods/methods.h"

namespace ether::methods {
namespace {

using at::Tensor;
using RankPattern = std::map<std::string, std::vector<bool>>;  // by site: the triplets that are left

struct AdaloraOptions : MethodOptions {
    static constexpr const char* kBiasOnly = "lora_only";

    int64_t rank = 12, target = 8, initial = 0, final = 0, interval = 1, total = 0;
    double alpha = 8, dropout = 0, beta1 = 0.85, beta2 = 0.85, orthogonality = 0.5;
    RankPattern pattern;  // of a loaded adapter

    Field alpha_or_one_field() {
        auto field = alpha_field(&alpha, "lora_alpha", "scale: alpha / rank; 0: of 1");
        field.low = 0;
        return field;
    }

    Fields fields() override {
        return {
            rank_field(&rank, "triplets of a layer at the start", "init_r"),
            {.name = "target-rank",
             .value = &target,
             .help = "triplets of a layer at the end, on average",
             .low = 0,
             .high = 1 << 16,
             .key = "target_r"},
            alpha_or_one_field(),
            {.name = "tinit",
             .value = &initial,
             .help = "steps before any is zeroed",
             .low = 0,
             .high = 1e12},
            {.name = "tfinal",
             .value = &final,
             .help = "last steps, with those that are left",
             .low = 0,
             .high = 1e12},
            {.name = "delta-t",
             .value = &interval,
             .help = "steps between two choices of those to keep",
             .low = 1,
             .high = 1e12,
             .key = "deltaT"},
            {.name = "total-step",
             .value = &total,
             .help = "steps of the schedule; 0: of the run",
             .low = 0,
             .high = 1e12},
            {.name = "beta1", .value = &beta1, .help = "smoothing of importance", .low = 0, .high = 0.999999},
            {.name = "beta2",
             .value = &beta2,
             .help = "smoothing of its uncertainty",
             .low = 0,
             .high = 0.999999},
            {.name = "orth-reg-weight",
             .value = &orthogonality,
             .help = "weight of the orthogonality of A and B in the loss",
             .low = 0,
             .high = 1e6},
            dropout_field(&dropout, "lora_dropout"),
        };
    }

    void from_config(nlohmann::json& config) override {
        const auto found = config.find("rank_pattern");
        if (found == config.end() || found->is_null()) return;
        constexpr std::string_view suffix = ".lora_E";
        for (const auto& [name, kept] : found->items()) {
            const bool fits =
                name.ends_with(suffix) && kept.is_array() &&
                std::all_of(kept.begin(), kept.end(), [](const auto& one) { return one.is_boolean(); });
            if (!fits)
                fail(ErrorKind::adapter,
                     "adapter_config.json: rank_pattern[\"{}\"] is not a list of true and false for a lora_E",
                     name);
            pattern[name.substr(0, name.size() - suffix.size())] = kept.template get<std::vector<bool>>();
        }
        config.erase(found);
    }
};

// One factor and what is known of its entries' importance (equations 9 and 10).
struct Factor {
    Tensor value, importance, uncertainty;

    void observe(const AdaloraOptions& options, double gradient_scale) const {
        if (!value.grad().defined()) return;
        const auto now = (value * value.grad() * gradient_scale).abs();
        importance.mul_(options.beta1).add_(now, 1 - options.beta1);
        uncertainty.mul_(options.beta2).add_((now - importance).abs(), 1 - options.beta2);
    }
    Tensor score() const { return importance * uncertainty; }
};

struct Triplets {
    const nn::Site* site;
    Factor a, e, b;
    Tensor kept;  // (r, 1): 1, or 0 where a triplet is zeroed

    // (r) bool: those that do anything, or still may.
    Tensor left() const { return kept.ne(0).logical_or(e.value.detach().ne(0)).flatten(); }
    Tensor scores() const { return e.score().squeeze(1) + a.score().mean(1) + b.score().mean(0); }
};

class Adalora : public Adapter {
  public:
    Adalora(const AdaloraOptions& options, const MethodContext& context)
        : options_(options), place_(context.model), left_in_file_(context.model) {
        const auto& prefix = context.model.shape().prefix;  // which names of a base without head lack
        for (const nn::Site* site : context.sites) {
            auto& left = left_in_file_[*site];
            for (const auto& [path, kept] : options.pattern)
                if (path == site->name() || prefix + path == site->name()) left = kept;
            const int64_t rank = left.empty() ? options.rank : std::count(left.begin(), left.end(), true);
            auto random = [&](const char* name, at::IntArrayRef shape) {
                return normal(shape, 0.02, context.random.stream(site->name()).stream(name));
            };
            place_[*site] = triplets_.size();
            triplets_.push_back(
                {site, factor(*site, "lora_A", random("lora_A", {rank, site->linear.in()}), context),
                 factor(*site, "lora_E", at::zeros({rank, 1}), context),
                 factor(*site, "lora_B", random("lora_B", {site->linear.out(), rank}), context),
                 state(*site, "lora_kept", at::ones({rank, 1}), context)});
        }
    }

    nn::SiteForms forms(const nn::Site& site, const nn::Pass&) override {
        const auto& triplets = triplets_[place_[site]];
        const auto rank = static_cast<double>(options_.rank);
        const double alpha = options_.alpha > 0 ? options_.alpha : rank;
        return low_rank(triplets.a.value * triplets.e.value, triplets.b.value, alpha / (rank + 1e-5),
                        options_.dropout);
    }

    Tensor extra_loss(const std::vector<Tensor>&) override {
        if (options_.orthogonality == 0) return {};
        auto distance = [](const Tensor& rows) {
            return (rows.mm(rows.t()) - at::eye(rows.size(0), rows.options())).norm();
        };
        Tensor sum;
        for (const auto& [site, a, e, b, kept] : triplets_) {
            const auto both = distance(a.value) + distance(b.value.t());
            sum = sum.defined() ? sum + both : both;
        }
        return sum * (options_.orthogonality / (2 * static_cast<double>(triplets_.size())));
    }

    void check_run(const RunPlan& plan) const override {
        if (!options_.pattern.empty()) return;
        if (options_.target >= options_.rank)
            fail(ErrorKind::usage,
                 "--target-rank: {} leaves all of --rank {}'s triplets, so nothing would be chosen; expected "
                 "less",
                 options_.target, options_.rank);
        if (options_.initial >= total(plan.steps) - options_.final)
            fail(ErrorKind::usage,
                 "--tinit and --tfinal: {} and {} leave none of the {} steps to choose triplets in",
                 options_.initial, options_.final, total(plan.steps));
    }

    void after_update(const Update& update) override {
        if (!options_.pattern.empty()) return;  // one from a file has the triplets that were left
        const at::NoGradGuard no_grad;
        total_ = total(update.total);
        const int64_t end = total_ - options_.final;
        if (update.step < end)
            for (const auto& triplets : triplets_)
                for (const auto* factor : {&triplets.a, &triplets.e, &triplets.b})
                    factor->observe(options_, update.gradient_scale);
        const bool chooses =
            update.step > options_.initial &&
            (update.step == end || (update.step < end && update.step % options_.interval == 0));
        if (chooses) keep_best(budget(update.step, end));
        // Between two choices a triplet may come back.
        if (chooses || update.step > end)
            for (const auto& triplets : triplets_) triplets.e.value.mul_(triplets.kept);
    }

    void to_config(nlohmann::json& config) const override {
        config["total_step"] = std::max({total_, options_.total, options_.initial + options_.final + 1});
        for (const auto& triplets : triplets_) {
            const auto& loaded = left_in_file_[*triplets.site];
            auto& pattern = config["rank_pattern"][triplets.site->name() + ".lora_E"];
            if (!loaded.empty()) {
                pattern = loaded;
            } else {
                const auto left = triplets.left().cpu();
                pattern = std::vector<bool>(left.const_data_ptr<bool>(),
                                            left.const_data_ptr<bool>() + left.numel());
            }
        }
    }

    void to_tensors(io::NamedTensors& tensors) const override {
        for (const auto& triplets : triplets_) {
            const auto kept = triplets.left().nonzero().flatten();
            for (auto& [name, tensor] : tensors) {
                const auto& site = triplets.site->name();
                if (name == site + ".lora_A" || name == site + ".lora_E")
                    tensor = tensor.index_select(0, kept);
                if (name == site + ".lora_B") tensor = tensor.index_select(1, kept);
            }
        }
    }

  private:
    static Tensor state(const nn::Site& site, const std::string& name, const Tensor& value,
                        const MethodContext& context) {
        return context.parameters.add(parameter_name(site, name.c_str()), value, nn::ParameterGroup::adapter,
                                      false,
                                      /*saved=*/false);
    }
    static Factor factor(const nn::Site& site, const std::string& name, const Tensor& value,
                         const MethodContext& context) {
        return {context.parameters.add(parameter_name(site, name.c_str()), value),
                state(site, name + "_importance", at::zeros_like(value), context),
                state(site, name + "_uncertainty", at::zeros_like(value), context)};
    }

    // Steps of the schedule, in a run of so many.
    int64_t total(int64_t steps) const { return options_.total ? options_.total : steps; }

    // Triplets of all layers that a step leaves: a cubic fall from the first number to the last.
    int64_t budget(int64_t step, int64_t end) const {
        const auto layers = static_cast<int64_t>(triplets_.size());
        const double first = static_cast<double>(options_.rank * layers),
                     last = static_cast<double>(options_.target * layers),
                     left = 1 - static_cast<double>(step - options_.initial) /
                                    static_cast<double>(end - options_.initial);
        return static_cast<int64_t>((first - last) * std::pow(left, 3) + last);
    }

    void keep_best(int64_t budget) const {
        std::vector<Tensor> scores;
        for (const auto& triplets : triplets_) scores.push_back(triplets.scores());
        const auto all = at::cat(scores);
        const int64_t dropped = all.size(0) - budget;
        if (dropped <= 0) return;
        const auto threshold = std::get<0>(all.kthvalue(dropped));
        for (size_t i = 0; i < scores.size(); ++i)
            triplets_[i].kept.copy_(scores[i].gt(threshold).unsqueeze(1));
    }

    const AdaloraOptions options_;
    int64_t total_ = 0;  // steps of the schedule, once one is done
    std::vector<Triplets> triplets_;
    BySite<size_t> place_;
    BySite<std::vector<bool>> left_in_file_;  // the triplets; empty: it does not tell
};

// How a new adapter would start, keys of LoRA that mean nothing here, and settings of features that are off.
bool ignores(const std::string& key, const nlohmann::json&) {
    return key == "init_lora_weights" || key == "r" || key == "use_rslora" || key == "megatron_core" ||
           key == "qalora_group_size" || key == "alpha_pattern";
}

}  // namespace

Method adalora() {
    return {"adalora",
            "ADALORA",
            "LoRA that gives its rank to the layers which need it",
            1e-2,
            true,
            make_options_with_bias<AdaloraOptions>,
            make_adapter_with_bias<Adalora, AdaloraOptions>,
            ignores};
}

}  // namespace ether::methods
