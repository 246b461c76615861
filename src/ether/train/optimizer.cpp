#include "ether/train/optimizer.h"

#include <ATen/Functions.h>

#include <algorithm>
#include <cmath>

#include "ether/core/error.h"
#include "ether/ops/composed.h"
#include "ether/ops/dispatch.h"

namespace ether::train {

AdamW::AdamW(std::vector<OptimizedParameter> parameters, AdamWOptions options)
    : options_(options), parameters_(std::move(parameters)), step_(at::zeros({1}, at::kLong)) {
    for (const auto& parameter : parameters_) {
        exp_avg_.push_back(at::zeros_like(parameter.value).detach());
        exp_avg_sq_.push_back(at::zeros_like(parameter.value).detach());
    }
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
    std::vector<at::Tensor> values, gradients, m, v;
    std::vector<at::Scalar> decays, sizes;
    for (const auto& step : steps) {
        values.push_back(parameters_[step.parameter].value);
        gradients.push_back(step.gradient);
        m.push_back(exp_avg_[step.parameter]), v.push_back(exp_avg_sq_[step.parameter]);
        decays.emplace_back(step.decay), sizes.emplace_back(-step.rate / corrections.first);
    }
    const double scale = corrections.scale;
    at::_foreach_mul_(m, options_.beta1);
    at::_foreach_add_(m, gradients, (1 - options_.beta1) * scale);
    at::_foreach_mul_(v, options_.beta2);
    at::_foreach_addcmul_(v, gradients, gradients, (1 - options_.beta2) * scale * scale);
    auto roots = at::_foreach_sqrt(v);
    at::_foreach_div_(roots, std::sqrt(corrections.second));
    at::_foreach_add_(roots, options_.epsilon);
    at::_foreach_mul_(values, decays);
    at::_foreach_addcdiv_(values, m, roots, sizes);
}

double AdamW::gradient_norm() const {
    std::vector<at::Tensor> gradients;
    for (const auto& parameter : parameters_)
        if (const auto& gradient = parameter.value.grad(); gradient.defined()) gradients.push_back(gradient);
    if (gradients.empty()) return 0;
    // Added up where they are, so that a device is waited for once.
    const auto norms = at::stack(at::_foreach_norm(gradients, 2, at::kDouble));
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
