#include "ether/eval/reflect_bench.h"

#include <ATen/Functions.h>
#include <torch/csrc/autograd/autograd.h>

#include "ether/core/error.h"
#include "ether/eval/timing.h"
#include "ether/ops/rank1/rank1.h"

namespace ether::eval {
namespace {

constexpr int kInFlight = 8;  // on a device between two waits, which a start would else be part of

}  // namespace

ReflectResult bench_reflect(const ReflectOptions& options) {
    if (options.width % options.blocks != 0)
        fail(ErrorKind::usage, "--blocks: {} does not divide --width {}", options.blocks, options.width);
    const auto on = at::TensorOptions(options.device);
    const auto x = at::randn({options.tokens, options.width}, on).to(options.dtype), g = at::randn_like(x);
    const int64_t terms = options.plus ? 2 : 1;
    const auto raw = at::randn({terms, options.blocks, options.width / options.blocks}, on);
    const auto vectors = raw / raw.norm(2, -1, /*keepdim=*/true);
    const std::vector<double> coefficients = options.plus ? std::vector{-1.0, 1.0} : std::vector{-2.0};

    // Backward alone: forward runs before the clock does. All in one call of autograd, whose start takes as
    // long as a reflection on a GPU.
    auto rate = [&](bool backward, bool trained, int64_t passes) {
        std::vector<at::Tensor> inputs, of, wanted;
        for (int i = 0; i < kInFlight; ++i) {
            inputs.push_back(x.detach().requires_grad_(backward));
            of.push_back(vectors.detach().requires_grad_(trained));
            wanted.push_back(inputs.back());
            if (trained) wanted.push_back(of.back());
        }
        std::vector<double> seconds;
        for (int64_t repeat = 0; repeat <= options.repeats; ++repeat) {
            std::vector<at::Tensor> y(kInFlight);
            auto forward = [&] {
                for (size_t i = 0; i < y.size(); ++i)
                    y[i] = ops::rank1(inputs[i], of[i], of[i], coefficients);
            };
            auto back = [&] { torch::autograd::grad(y, wanted, std::vector<at::Tensor>(kInFlight, g)); };
            if (backward) forward();
            const double taken =
                backward ? seconds_of(back, options.device) : seconds_of(forward, options.device);
            if (repeat > 0) seconds.push_back(taken / kInFlight);
        }
        return static_cast<double>(passes) * static_cast<double>(x.nbytes()) / median(seconds);
    };
    ReflectResult result;
    result.bytes_per_second = copy_bandwidth(options.device);
    result.forward = rate(false, false, 2) / result.bytes_per_second;
    result.backward_frozen = rate(true, false, 2) / result.bytes_per_second;
    result.backward = rate(true, true, 3) / result.bytes_per_second;
    return result;
}

}  // namespace ether::eval
