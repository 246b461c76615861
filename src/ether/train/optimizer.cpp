#include "ether/train/optimizer.h"

#include <ATen/Functions.h>

#include <algorithm>
#include <cmath>

#include "ether/core/error.h"
#include "ether/ops/composed.h"
#include "ether/ops/dispatch.h"

namespace ether::train {

namespace {

// Zeros of each parameter's shape and dtype. Pieces of one tensor where operations are composed: see Runs.
std::vector<at::Tensor> zeros_beside(const std::vector<OptimizedParameter>& parameters) {
    const at::NoGradGuard no_grad;
    std::vector<at::Tensor> pieces;
    at::Tensor all;
    int64_t taken = 0;
    for (const auto& [name, value, rate, decay] : parameters) {
        if (!ops::runs_composed(value)) {
            pieces.push_back(at::zeros_like(value));
            continue;
        }
        if (!all.defined() || all.scalar_type() != value.scalar_type()) {
            int64_t total = 0;
            for (const auto& parameter : parameters) total += parameter.value.numel();
            all = at::zeros({total}, value.options().requires_grad(false));
            taken = 0;
        }
        pieces.push_back(all.narrow(0, taken, value.numel()).view(value.sizes()));
        taken += value.numel();
    }
    return pieces;
}

bool follows(const at::Tensor& next, const at::Tensor& before) {
    return next.is_alias_of(before) && next.is_contiguous() && before.is_contiguous() &&
           next.storage_offset() == before.storage_offset() + before.numel();
}

// Tensors that lie one behind the other, as one: an operation on a thousand of them takes a thousand times
// what it costs to start it on one.
class Runs {
  public:
    // joins: it lies behind the tensor that was added last.
    void add(const at::Tensor& tensor, bool joins) {
        if (joins)
            runs_.back().second += tensor.numel();
        else
            runs_.emplace_back(tensor, tensor.numel());
    }
    std::vector<at::Tensor> tensors() const {
        std::vector<at::Tensor> tensors;
        for (const auto& [first, length] : runs_) tensors.push_back(first.as_strided({length}, {1}));
        return tensors;
    }

  private:
    std::vector<std::pair<at::Tensor, int64_t>> runs_;  // the first tensor of each, and all its values
};

}  // namespace

AdamW::AdamW(std::vector<OptimizedParameter> parameters, AdamWOptions options)
    : options_(options),
      parameters_(std::move(parameters)),
      exp_avg_(zeros_beside(parameters_)),
      exp_avg_sq_(zeros_beside(parameters_)),
      step_(at::zeros({1}, at::kLong)) {
    if (!parameters_.empty() && ops::runs_composed(parameters_.front().value))
        changes_ = zeros_beside(parameters_);
}

void AdamW::step(double schedule_factor, double gradient_scale) {
    const at::NoGradGuard no_grad;
    const auto count = static_cast<double>(++*step_.mutable_data_ptr<int64_t>());
    const Corrections corrections{gradient_scale, 1 - std::pow(options_.beta1, count),
                                  1 - std::pow(options_.beta2, count)};
    std::vector<Step> steps;
    for (size_t i = 0; i < parameters_.size(); ++i) {
        const auto& parameter = parameters_[i];
        if (!parameter.value.grad().defined()) continue;
        const double rate = parameter.learning_rate * schedule_factor;
        steps.push_back({i, parameter.value.grad().contiguous(), rate, 1 - rate * parameter.weight_decay});
    }
    if (!steps.empty() && ops::runs_composed(steps.front().gradient))
        return update_composed(steps, corrections);
    for (const auto& step : steps) update(step, corrections);
}

void AdamW::update(const Step& step, const Corrections& corrections) const {
    const auto& parameter = parameters_[step.parameter];
    ops::dispatch(parameter.value.scalar_type(), "AdamW", [&](auto type) {
        using T = decltype(type);
        if constexpr (std::is_floating_point_v<T>) {
            T* value = parameter.value.mutable_data_ptr<T>();
            T *m = exp_avg_[step.parameter].template mutable_data_ptr<T>(),
              *v = exp_avg_sq_[step.parameter].template mutable_data_ptr<T>();
            const T* g = step.gradient.template const_data_ptr<T>();
            const T decay = static_cast<T>(step.decay), scale = static_cast<T>(corrections.scale);
            const T b1 = static_cast<T>(options_.beta1), b2 = static_cast<T>(options_.beta2);
            const T c1 = static_cast<T>(1 - options_.beta1), c2 = static_cast<T>(1 - options_.beta2);
            const T size = static_cast<T>(step.rate / corrections.first),
                    root = static_cast<T>(std::sqrt(corrections.second));
            const T epsilon = static_cast<T>(options_.epsilon);
            const int64_t n = parameter.value.numel();
#pragma omp simd
            for (int64_t j = 0; j < n; ++j) {
                const T gj = g[j] * scale;
                m[j] = b1 * m[j] + c1 * gj;
                v[j] = b2 * v[j] + c2 * gj * gj;
                value[j] = value[j] * decay - size * m[j] / (std::sqrt(v[j]) / root + epsilon);
            }
        }
    });
}

void AdamW::update_composed(const std::vector<Step>& steps, const Corrections& corrections) const {
    std::vector<at::Tensor> values, changes;
    std::vector<at::Scalar> decays, sizes;
    Runs gradient_runs, m_runs, v_runs, change_runs;
    bool decay = false;
    for (size_t k = 0; k < steps.size(); ++k) {
        const auto& step = steps[k];
        const size_t i = step.parameter;
        values.push_back(parameters_[i].value);
        changes.push_back(changes_[i]);
        decays.emplace_back(step.decay);
        decay |= step.decay != 1;
        const bool joins = k > 0 && steps[k - 1].rate == step.rate && steps[k - 1].parameter + 1 == i &&
                           follows(exp_avg_[i], exp_avg_[i - 1]) &&
                           follows(step.gradient, steps[k - 1].gradient);
        if (!joins) sizes.emplace_back(-step.rate / corrections.first);
        gradient_runs.add(step.gradient, joins);
        m_runs.add(exp_avg_[i], joins), v_runs.add(exp_avg_sq_[i], joins),
            change_runs.add(changes_[i], joins);
    }
    const auto gradients = gradient_runs.tensors();
    auto m = m_runs.tensors(), v = v_runs.tensors(), quotients = change_runs.tensors();
    const double scale = corrections.scale;
    at::_foreach_mul_(m, options_.beta1);
    at::_foreach_add_(m, gradients, (1 - options_.beta1) * scale);
    at::_foreach_mul_(v, options_.beta2);
    at::_foreach_addcmul_(v, gradients, gradients, (1 - options_.beta2) * scale * scale);
    auto roots = at::_foreach_sqrt(v);
    at::_foreach_div_(roots, std::sqrt(corrections.second));
    at::_foreach_add_(roots, options_.epsilon);
    at::_foreach_copy_(quotients, m);
    at::_foreach_div_(quotients, roots);
    at::_foreach_mul_(quotients, sizes);
    if (decay) at::_foreach_mul_(values, decays);
    at::_foreach_add_(values, changes);
}

double AdamW::gradient_norm() const {
    at::Tensor last;
    Runs runs;
    for (const auto& parameter : parameters_) {
        if (!parameter.value.grad().defined()) continue;
        const auto gradient = parameter.value.grad().contiguous();
        runs.add(gradient, last.defined() && ops::runs_composed(gradient) && follows(gradient, last));
        last = gradient;
    }
    if (!last.defined()) return 0;
    // Added up where they are, so that a device is waited for once; there in one order, wherever they lie.
    auto parts = runs.tensors();
    if (parts.size() > 1 && ops::runs_composed(parts.front())) parts = {at::cat(parts)};
    const auto norms = at::stack(at::_foreach_norm(parts, 2, at::kDouble));
    return std::sqrt(norms.square().sum().item<double>());
}

std::vector<std::pair<std::string, at::Tensor>> AdamW::state() const {
    std::vector<std::pair<std::string, at::Tensor>> state = {{"step", step_}};
    for (size_t i = 0; i < parameters_.size(); ++i) {
        state.emplace_back(parameters_[i].name + ".exp_avg", exp_avg_[i]);
        state.emplace_back(parameters_[i].name + ".exp_avg_sq", exp_avg_sq_[i]);
    }
    return state;
}

void AdamW::load_state(const std::vector<std::pair<std::string, at::Tensor>>& saved) {
    const at::NoGradGuard no_grad;
    for (const auto& [name, tensor] : state()) {
        const auto found =
            std::find_if(saved.begin(), saved.end(), [&](const auto& entry) { return entry.first == name; });
        if (found == saved.end() || found->second.sizes() != tensor.sizes())
            fail(ErrorKind::format, "the checkpoint's optimizer state lacks \"{}\" or has another shape",
                 name);
        at::Tensor(tensor).copy_(found->second);
    }
}

}  // namespace ether::train
