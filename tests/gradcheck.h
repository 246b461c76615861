// gradcheck: a function's gradients against central differences, in double. Every input that requires a
// gradient is checked, entry by entry (or a random sample of a large one); a failure names the input and the
// index.
#pragma once

#include <functional>
#include <utility>
#include <vector>

#include "tensors.h"

namespace ether::test {

using NamedInputs = std::vector<std::pair<std::string, at::Tensor>>;

struct GradcheckOptions {
    double tolerance =
        1e-6;  // relative to max(1, the input's largest gradient); truncation and rounding are near 1e-10
    double step = 1e-5;
    int64_t entries = 64;  // checked per input
    uint64_t seed = 1;     // of the cotangent and the sample
};

// The inputs are leaves in double; `function` reads them (they are changed in place and restored) and is
// deterministic.
inline testing::AssertionResult gradcheck(const std::function<at::Tensor()>& function,
                                          const NamedInputs& inputs, const GradcheckOptions& options = {}) {
    at::Tensor cotangent;
    auto weighted = [&] {
        const auto y = function();
        if (!cotangent.defined()) cotangent = normal(y.sizes(), options.seed);
        return (y * cotangent).sum();
    };
    for (const auto& [name, value] : inputs) {
        if (value.scalar_type() != at::kDouble)
            return testing::AssertionFailure() << name << " is not float64";
        value.mutable_grad() = at::Tensor();
    }
    weighted().backward();
    const at::NoGradGuard no_grad;
    for (const auto& [name, value] : inputs) {
        if (!value.requires_grad()) continue;
        const auto gradient = value.grad().defined() ? value.grad().contiguous() : at::zeros_like(value);
        const double scale = std::max(1.0, largest(gradient));
        auto order = Random(options.seed).stream(name).permutation(value.numel());
        order.resize(static_cast<size_t>(std::min<int64_t>(options.entries, value.numel())));
        for (const int64_t i : order) {
            auto entry = value.detach().view({-1})[i];
            const double at = entry.item<double>();
            auto moved = [&](double to) {
                entry.fill_(to);
                return weighted().item<double>();
            };
            const double numeric = (moved(at + options.step) - moved(at - options.step)) / (2 * options.step);
            entry.fill_(at);
            const double analytic = gradient.view({-1})[i].item<double>();
            if (!(std::abs(numeric - analytic) <= options.tolerance * scale))
                return testing::AssertionFailure()
                       << name << "[" << i << "] of " << value.sizes() << ": gradient " << analytic
                       << ", central difference " << numeric;
        }
    }
    return testing::AssertionSuccess();
}

// As above for a function of tensors that become leaves.
inline testing::AssertionResult gradcheck(
    const std::function<at::Tensor(const std::vector<at::Tensor>&)>& function, const NamedInputs& inputs,
    const GradcheckOptions& options = {}) {
    std::vector<at::Tensor> values;
    NamedInputs leaves;
    for (const auto& [name, value] : inputs) {
        leaves.emplace_back(name,
                            value.detach().to(at::kDouble, false, true).contiguous().requires_grad_(true));
        values.push_back(leaves.back().second);
    }
    return gradcheck([&] { return function(values); }, leaves, options);
}

}  // namespace ether::test
