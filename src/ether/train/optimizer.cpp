#include "ether/train/optimizer.h"

#include <ATen/Functions.h>

#include <algorithm>
#include <cmath>

#include "ether/core/error.h"
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
    const double correction1 = 1 - std::pow(options_.beta1, count),
                 correction2 = 1 - std::pow(options_.beta2, count);
    for (size_t i = 0; i < parameters_.size(); ++i) {
        const auto& parameter = parameters_[i];
        if (!parameter.value.grad().defined()) continue;
        const auto gradient = parameter.value.grad().contiguous();
        const double rate = parameter.learning_rate * schedule_factor;
        ops::dispatch(parameter.value.scalar_type(), "AdamW", [&](auto type) {
            using T = decltype(type);
            if constexpr (std::is_floating_point_v<T>) {
                T* value = parameter.value.mutable_data_ptr<T>();
                T *m = exp_avg_[i].template mutable_data_ptr<T>(),
                  *v = exp_avg_sq_[i].template mutable_data_ptr<T>();
                const T* g = gradient.template const_data_ptr<T>();
                const T decay = static_cast<T>(1 - rate * parameter.weight_decay),
                        scale = static_cast<T>(gradient_scale);
                const T b1 = static_cast<T>(options_.beta1), b2 = static_cast<T>(options_.beta2);
                const T c1 = static_cast<T>(1 - options_.beta1), c2 = static_cast<T>(1 - options_.beta2);
                const T size = static_cast<T>(rate / correction1),
                        root = static_cast<T>(std::sqrt(correction2));
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
}

double AdamW::gradient_norm() const {
    double sum = 0;
    for (const auto& parameter : parameters_)
        if (parameter.value.grad().defined())
            sum += parameter.value.grad().to(at::kDouble).square().sum().item<double>();
    return std::sqrt(sum);
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
