#include "ether/ops/cross_entropy/linear_cross_entropy.h"

#include <ATen/Functions.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "ether/core/parallel.h"
#include "ether/ops/composed.h"
#include "ether/ops/cross_entropy/gpu.h"
#include "ether/ops/dispatch.h"
#include "ether/ops/gemm/gemm.h"
#include "ether/ops/isa.h"
#include "ether/ops/vector_math.h"

namespace ether::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int64_t kIgnored = -100;

// Logits held at once. A GPU reads the whole weight for each chunk, so that few are better, where a kernel of
// ours needs no more than the logits themselves.
int64_t chunk_values(at::ScalarType dtype, at::Device device) {
    return int64_t{1} << (has_gpu_cross_entropy(dtype, device) ? 26 : 23);
}

// Turns a row of logits into its gradient (softmax minus one-hot) in place and returns its loss.
template <typename A>
A loss_and_gradient(A* logits, int64_t classes, int64_t target) {
    if (target == kIgnored) {
        std::fill(logits, logits + classes, A{0});
        return 0;
    }
    A highest = logits[0];
#pragma omp simd reduction(max : highest)
    for (int64_t j = 0; j < classes; ++j) highest = std::max(highest, logits[j]);
    const A target_logit = logits[target];
    A sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < classes; ++j) {
        logits[j] = exp(logits[j] - highest);
        sum += logits[j];
    }
    const A scale = 1 / sum;
#pragma omp simd
    for (int64_t j = 0; j < classes; ++j) logits[j] *= scale;
    logits[target] -= 1;
    return std::log(sum) + highest - target_logit;
}

// The same for all rows of logits; -> the sum of their losses, a scalar in float64. The gradient is in the
// logits' dtype.
at::Tensor loss_and_gradient(at::Tensor& logits, const at::Tensor& targets) {
    if (has_gpu_cross_entropy(logits.scalar_type(), logits.device()))
        return gpu_cross_entropy(logits, targets).sum(at::kDouble);
    const auto dtype = logits.scalar_type();
    const int64_t count = logits.size(0), classes = logits.size(1);
    const auto options = logits.options().dtype(at::kDouble);
    if (runs_composed(logits)) {
        logits = logits.to(accumulate_dtype(dtype));
        const auto target = targets.clamp_min(0).unsqueeze(1), ignored = targets.eq(kIgnored).unsqueeze(1);
        const auto normalizer = logits.logsumexp(1, /*keepdim=*/true);
        const auto losses = (normalizer - logits.gather(1, target)).masked_fill(ignored, 0);
        logits.sub_(normalizer).exp_();
        logits.scatter_add_(1, target, at::full({count, 1}, -1, logits.options())).masked_fill_(ignored, 0);
        logits = logits.to(dtype);
        return losses.sum(at::kDouble);
    }
    std::vector<double> losses(static_cast<size_t>(count));
    const int64_t* target = targets.const_data_ptr<int64_t>();
    dispatch(logits.scalar_type(), "linear_cross_entropy", [&](auto type) {
        using X = decltype(type);
        using A = accumulate_t<X>;
        X* rows = logits.template mutable_data_ptr<X>();
        parallel_for(count, 1, [&](int, int64_t first, int64_t last) {
            std::vector<A> wide(std::is_same_v<X, A> ? 0 : static_cast<size_t>(classes));
            for (int64_t t = first; t < last; ++t) {
                X* row = rows + t * classes;
                A* values;
                if constexpr (std::is_same_v<X, A>) {
                    values = row;
                } else {
                    values = wide.data();
                    convert(row, values, classes);
                }
                for_best_isa(
                    [&] { losses[static_cast<size_t>(t)] = loss_and_gradient(values, classes, target[t]); });
                if constexpr (!std::is_same_v<X, A>) convert(values, row, classes);
            }
        });
    });
    return at::full({}, std::accumulate(losses.begin(), losses.end(), 0.0), options);
}

struct LinearCrossEntropyFunction : torch::autograd::Function<LinearCrossEntropyFunction> {
    static at::Tensor forward(AutogradContext* context, const at::Tensor& hidden, const at::Tensor& weight,
                              const at::Tensor& targets) {
        const auto accumulate = accumulate_dtype(hidden.scalar_type());
        const int64_t tokens = hidden.size(0), classes = weight.size(0);
        const int64_t most =
            std::max<int64_t>(1, chunk_values(hidden.scalar_type(), hidden.device()) / classes);
        const int64_t chunks = std::max<int64_t>(1, (tokens + most - 1) / most);
        const int64_t chunk = std::max<int64_t>(1, (tokens + chunks - 1) / chunks);  // all about as long
        auto grad_hidden = hidden.requires_grad() ? at::empty_like(hidden) : at::Tensor();
        auto grad_weight = weight.requires_grad()
                               ? at::zeros(weight.sizes(), weight.options().dtype(accumulate))
                               : at::Tensor();
        const auto loss = at::zeros({}, hidden.options().dtype(at::kDouble));
        for (int64_t begin = 0; begin < tokens; begin += chunk) {
            const int64_t count = std::min(chunk, tokens - begin);
            const auto h = hidden.narrow(0, begin, count);
            auto gradient = gemm_nt(h, weight);
            loss.add_(loss_and_gradient(gradient, targets.narrow(0, begin, count)));
            if (grad_hidden.defined()) grad_hidden.narrow(0, begin, count).copy_(gemm_nn(gradient, weight));
            if (grad_weight.defined()) grad_weight.add_(gemm_tn(gradient, h));
        }
        context->save_for_backward({grad_hidden, grad_weight});
        context->saved_data["weight_dtype"] = weight.scalar_type();
        return loss.to(accumulate);
    }

    static variable_list backward(AutogradContext* context, variable_list grads) {
        const auto saved = context->get_saved_variables();
        auto scaled = [&](const at::Tensor& gradient, at::ScalarType dtype) {
            return gradient.defined() ? gradient.mul(grads[0]).to(dtype) : at::Tensor();
        };
        return {saved[0].defined() ? scaled(saved[0], saved[0].scalar_type()) : at::Tensor(),
                scaled(saved[1], context->saved_data["weight_dtype"].toScalarType()),
                {}};
    }
};

}  // namespace

int64_t linear_cross_entropy_bytes(int64_t tokens, int64_t classes, at::ScalarType dtype, at::Device device) {
    const int64_t chunk = chunk_values(dtype, device);
    // Others than our kernel widen logits, and narrow their gradient; on the CPU each slice of a batch does.
    if (!has_gpu_cross_entropy(dtype, device)) return 8 * chunk;
    return std::min(chunk, tokens * classes) * static_cast<int64_t>(at::elementSize(dtype));
}

at::Tensor linear_cross_entropy(const at::Tensor& hidden, const at::Tensor& weight,
                                const at::Tensor& targets) {
    ETHER_ASSERT(hidden.dim() == 2 && targets.size(0) == hidden.size(0) && weight.size(1) == hidden.size(1));
    return LinearCrossEntropyFunction::apply(hidden.contiguous(), weight, targets.contiguous());
}

}  // namespace ether::ops
