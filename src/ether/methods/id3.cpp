// ID3, step-by-step unmasking (Agarwal et al., arXiv 2408.14470; published code:
// Aradhye2002/selective-peft-toolkit): each of the first T steps scores the weights that are not trained yet
// by D3 = |g| / (|w| + eps)^exp and trains the best B / T of them from then on, so that the budget B is used
// up at step T. One step, T = 1, is a mask chosen by the first gradient. While it chooses, a step takes the
// gradient of every adapted weight, one matrix at a time. Unlike the published code it keeps to the budget
// where scores are equal, and works where B is less than T.
#include <ATen/Functions.h>

#include <algorithm>
#include <limits>

#include "ether/core/error.h"
#include "ether/methods/methods.h"
#include "ether/methods/selected_weights.h"

namespace ether::methods {
namespace {

using at::Tensor;

struct Id3Options : MethodOptions {
    double budget = 0.001, exponent = 0, epsilon = 1e-3;
    int64_t steps = 0;

    Fields fields() override {
        return {
            budget_field(&budget),
            {.name = "unmask-steps",
             .value = &steps,
             .help = "T, steps in which entries are chosen; 0, or more than the run has: all",
             .low = 0,
             .high = 1e9},
            {.name = "exp",
             .value = &exponent,
             .help = "how much a small weight raises its score |g| / (|w| + eps)^exp",
             .low = -100,
             .high = 100},
            {.name = "eps", .value = &epsilon, .help = "eps of that score", .low = 1e-30, .high = 1e6},
        };
    }
};

class Id3 : public Adapter {
  public:
    Id3(const Id3Options& options, const MethodContext& context)
        : options_(options), weights_("id3", options.budget, context), best_(weights_.budget()) {
        check_counts(context, options.exponent == 0 && options.epsilon != Id3Options().epsilon, "--eps",
                     "--exp");
    }

    nn::SiteForms forms(const nn::Site& site, const nn::Pass& pass) override {
        return weights_.forms(site, pass);
    }
    bool reads_weights() const override { return true; }
    void to_config(nlohmann::json& config) const override { weights_.to_config(config); }

    void check_run(const RunPlan& plan) const override {
        if (plan.accumulate > 1)
            fail(ErrorKind::usage,
                 "--accumulate: method id3 chooses by each weight's gradient of a whole step, which is only "
                 "there in one piece; use --accumulate 1");
    }
    bool wants_weight_grad(const nn::Site&) override { return weights_.used() < weights_.budget(); }

    void weight_grad(const nn::Site& site, const Tensor& gradient) override {
        const at::NoGradGuard no_grad;
        auto scores = gradient.abs();
        if (options_.exponent != 0)
            scores.div_(site.linear.weight.to(scores.scalar_type())
                            .abs()
                            .add_(options_.epsilon)
                            .pow_(options_.exponent));
        auto flat = scores.view({-1});
        flat.index_fill_(0, weights_.places_at(site), -std::numeric_limits<double>::infinity());
        best_.add(flat, weights_.first_place(site), gradient.reshape({-1}));
    }

    // Entries that are new in this step are updated in it, by the gradients that chose them.
    void after_backward(const Progress& progress) override {
        const at::NoGradGuard no_grad;
        const int64_t begin = weights_.used();
        const auto chosen = best_.best(share(progress));
        weights_.choose(chosen);
        auto& gradient = weights_.values.mutable_grad();
        if (!gradient.defined()) gradient = at::zeros_like(weights_.values);
        for (size_t i = 0; i < chosen.size(); ++i)
            gradient[begin + static_cast<int64_t>(i)] = chosen[i].gradient;
        best_ = BestEntries(share({progress.step + 1, progress.total}));
    }

  private:
    // Entries chosen in a step: B / T, and one more in each of the first B mod T steps; where an adapter is
    // trained on, of what is left of B.
    int64_t share(const Progress& progress) {
        const int64_t steps = options_.steps > 0 ? std::min(options_.steps, progress.total) : progress.total;
        if (progress.step >= steps) return 0;
        const int64_t left = weights_.budget() - weights_.used(), steps_left = steps - progress.step;
        return (left + steps_left - 1) / steps_left;
    }

    const Id3Options options_;
    SelectedWeights weights_;
    BestEntries best_;  // of the weights whose gradients were seen in this step
};

}  // namespace

Method id3() {
    return {"id3",
            "ID3",
            "weights of the adapted layers, chosen step by step by their gradients",
            1e-2,
            true,
            make_options<Id3Options>,
            make_adapter<Id3, Id3Options>,
            ignores_nothing};
}

}  // namespace ether::methods
