#include "ether/eval/forms_bench.h"

#include <algorithm>
#include <map>
#include <variant>

#include "ether/eval/train_step_bench.h"
#include "ether/methods/adapted_model.h"
#include "ether/methods/registry.h"

namespace ether::eval {
namespace {

using nn::Form;

constexpr double kAllowed = 1.05, kShareOfPeak = 0.7;

struct Candidate {
    const char *form, *method;
    std::map<std::string, std::string> options;
    bool encoders_only = false;
};

// One method for each form, ETHER first: its step is what others are compared with.
std::vector<Candidate> candidates() {
    return {{"Rank1, one term", "ether", {}},
            {"Rank1, two terms, both sides", "ether+", {}},
            {"Rank1, a chain of 8", "hra", {}},
            {"LowRank", "lora", {}},
            {"LowRank behind Dropout", "lora", {{"dropout", "0.1"}}},
            {"LowRank and Scale", "lora", {{"dora", "true"}}},
            {"Scale", "ia3", {}},
            {"Scale and Shift", "red", {}},
            {"PairRotate", "road", {}},
            {"BlockDiagonal", "oft", {}},
            {"Permute and BlockDiagonal", "boft", {{"factors", "2"}}},
            {"Dense", "hira", {}},
            {"Overlay", "pafi", {}},
            {"SequenceGate", "unipelt", {{"modules", "lora"}}, true}};
}

// A form's operations on one token whose value is `width` wide, forward.
double forward_flops(const Form& form, int64_t width) {
    struct Count {
        double width;
        double operator()(const nn::Rank1& form) const {
            return 4 * static_cast<double>(form.coefficients.size()) * width;
        }
        double operator()(const nn::LowRank& form) const {
            return 2 * static_cast<double>(form.a.numel() + form.b.numel());
        }
        double operator()(const nn::BlockDiagonal& form) const {
            return 2 * width * static_cast<double>(form.blocks.size(-1));
        }
        double operator()(const nn::Dense& form) const { return 2 * width * static_cast<double>(form.out); }
        double operator()(const nn::Overlay& form) const {
            return 2 * static_cast<double>(form.values.numel());
        }
        double operator()(const nn::PairRotate&) const { return 3 * width; }
        double operator()(const nn::Permute&) const { return 0; }
        double operator()(const nn::Dropout&) const { return width; }
        double operator()(const nn::Scale&) const { return width; }
        double operator()(const nn::Shift&) const { return width; }
        double operator()(const nn::SequenceGate&) const { return 3 * width; }
    };
    return std::visit(Count{static_cast<double>(width)}, form);
}

double chain_flops(const nn::Chain& chain, int64_t width) {
    double flops = 0;
    for (const auto& form : chain) {
        flops += forward_flops(form, width);
        width = nn::width_after(form, width);
    }
    return flops;
}

// Of the forms of all sites, a token: the result, its gradient, and that of the forms' own tensors.
double own_flops(methods::AdaptedModel& model) {
    const at::NoGradGuard no_grad;
    const data::Batch nothing;
    model.bind({.batch = nothing});
    double flops = 0;
    for (const auto* site : model.sites()) {
        const auto& [forms, linear] = std::tie(site->forms, site->linear);
        flops += chain_flops(forms.pre, linear.in()) + chain_flops(forms.post, linear.out()) +
                 chain_flops(forms.output, linear.out());
        for (const auto& chain : forms.delta) flops += chain_flops(chain, linear.in());
    }
    model.model().unbind();
    return 3 * flops;
}

}  // namespace

FormsBenchResult bench_forms(const io::Checkpoint& checkpoint, const FormsBenchOptions& options,
                             const std::function<void(const std::string&)>& told) {
    FormsBenchResult result;
    const auto model = load_bench_model(checkpoint, options.input);
    const auto tokens = static_cast<double>(options.input.batch * options.input.tokens);
    auto measure = [&](const Candidate& candidate) {
        FormRow row{.form = candidate.form, .method = candidate.method};
        for (const auto& [name, value] : candidate.options)
            row.method += fmt::format(" --{} {}", name, value);
        told(row.method);
        // Some act at layers of their own choice alone.
        const bool chooses = methods::method_named(candidate.method).targets != methods::Targets().modules;
        const auto targets = chooses ? std::string() : options.targets;
        methods::AdaptedModel adapted(
            load_bench_model(checkpoint, options.input),
            methods::AdapterConfig{
                .method = candidate.method, .options = candidate.options, .targets = {.modules = targets}});
        row.own_flops = tokens * own_flops(adapted);
        row.seconds = median_step(adapted, options.input, options.steps);
        return row;
    };
    const auto all = candidates();
    for (const auto& candidate : all) {
        if (!candidate.encoders_only || !model->shape().causal) result.rows.push_back(measure(candidate));
    }
    result.ether_seconds = (result.rows.front().seconds + measure(all.front()).seconds) / 2;
    result.gemm_flops_per_second =
        ops::best_gemm_rate(gemm_shapes(*model), options.input.batch, options.input.tokens, model->dtype())
            .flops_per_second;
    // ETHER's own FLOPs are in its step already.
    for (auto& row : result.rows) {
        row.ratio = row.seconds / result.ether_seconds;
        const double more = std::max(0.0, row.own_flops - result.rows.front().own_flops);
        row.allowed = kAllowed + more / (kShareOfPeak * result.gemm_flops_per_second) / result.ether_seconds;
    }
    return result;
}

}  // namespace ether::eval
