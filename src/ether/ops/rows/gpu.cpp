#include "ether/ops/rows/gpu.h"

#include <ATen/Functions.h>

#include <algorithm>
#include <bit>
#include <map>
#include <mutex>

#include "ether/core/error.h"
#include "ether/ops/dispatch.h"
#include "ether/ops/gpu/launcher.h"
#include "ether/ops/rows/gpu_source.h"

namespace ether::ops {
namespace {

using Words = std::vector<uint64_t>;
// What tells one kernel from another.
using Key = std::vector<int64_t>;

struct Compiled {
    Kernels::Kernel kernel;
    int threads;
};

// Kernels of all graphs met so far. Forward passes and autograd's threads come here side by side.
template <typename Source>
Compiled compiled(Kernels& kernels, at::Device device, Key key, const GpuShape& shape, int64_t shared_bytes,
                  const Source& source) {
    static std::mutex mutex;
    static std::map<Key, Compiled> known;
    key.push_back(device.is_cpu() ? -1 : device.index());
    const std::lock_guard lock(mutex);
    const auto found = known.find(key);
    if (found != known.end()) return found->second;
    const int threads = static_cast<int>(shape.threads);
    return known[key] = {kernels.compile(source(), threads, shared_bytes), threads};
}

void describe(const Plan& plan, const GpuShape& shape, Key& key) {
    key.insert(key.end(), {static_cast<int64_t>(shape.dtype), static_cast<int64_t>(plan.inputs)});
    key.insert(key.end(), plan.widths.begin(), plan.widths.end());
    for (const auto value : plan.outputs) key.push_back(static_cast<int64_t>(value));
    for (size_t s = 0; s < plan.steps.size(); ++s) {
        const auto& code = shape.codes[s];
        key.push_back(std::bit_cast<int64_t>(code.name));
        key.insert(key.end(), code.constants.begin(), code.constants.end());
        for (const auto argument : plan.steps[s].arguments) key.push_back(static_cast<int64_t>(argument));
    }
}

// `keeps` holds copies of parameters that do not lie where 16 bytes can be read at once.
void add_operations(const Plan& plan, const GpuShape& shape, Words& words, std::vector<at::Tensor>& keeps) {
    for (size_t s = 0; s < plan.steps.size(); ++s) {
        for (const auto& parameter : plan.steps[s].op->parameters) {
            const bool aligned = address(parameter) % 16 == 0;
            if (!aligned) keeps.push_back(parameter.clone());
            words.push_back(address(aligned ? parameter : keeps.back()));
        }
        const auto& code = shape.codes[s];
        words.insert(words.end(), code.words.begin(), code.words.end());
        for (const double number : code.numbers) words.push_back(std::bit_cast<uint64_t>(number));
    }
}

at::Tensor aligned(const at::Tensor& x) { return address(x) % 16 == 0 ? x : x.clone(); }

}  // namespace

std::optional<GpuShape> gpu_shape(const Plan& plan, const at::Tensor& like,
                                  const std::vector<char>* trained) {
    if (!kernels_of(like.device())) return {};
    GpuShape shape(plan, like.scalar_type(), trained != nullptr);
    if (shape.threads == 0) return {};
    for (size_t s = 0; trained && s < plan.steps.size(); ++s)
        for (size_t k = 0; k < plan.steps[s].op->parameters.size(); ++k)
            if ((*trained)[plan.inputs + plan.steps[s].parameters + k] && !shape.codes[s].trains) return {};
    return shape;
}

void gpu_forward(const Plan& plan, const GpuShape& shape, const std::vector<at::Tensor>& inputs,
                 std::vector<at::Tensor>& stored) {
    const int64_t tokens = inputs.front().size(0);
    if (tokens == 0) return;
    const auto device = inputs.front().device();
    auto& kernels = *kernels_of(device);
    Key key = {0};
    describe(plan, shape, key);
    const auto [kernel, threads] =
        compiled(kernels, device, std::move(key), shape, 0, [&] { return forward_source(plan, shape); });

    Words words = {static_cast<uint64_t>(tokens)};
    std::vector<at::Tensor> keeps;
    for (const auto& input : inputs) words.push_back(address(keeps.emplace_back(aligned(input))));
    for (const auto& value : stored) words.push_back(address(value));
    add_operations(plan, shape, words, keeps);
    kernels.launch(kernel, std::min<int64_t>(tokens, int64_t{kernels.processors()} * kernel.blocks), threads,
                   words);
}

void gpu_backward(const Plan& plan, const GpuShape& shape, const BackwardPlan& way,
                  const std::vector<at::Tensor>& inputs, const std::vector<at::Tensor>& grads,
                  const std::vector<char>& trained, std::vector<at::Tensor>& to, int64_t tokens) {
    const auto like =
        *std::find_if(grads.begin(), grads.end(), [](const auto& grad) { return grad.defined(); });
    auto& kernels = *kernels_of(like.device());
    std::vector<char> given, tied(plan.steps.size());
    for (const auto& grad : grads) given.push_back(grad.defined());
    std::vector<GpuSum> sums;
    const int64_t bytes = like.scalar_type() == at::kDouble ? 8 : 4;
    const int64_t room = kernels.shared_bytes() - shape.shared * bytes;
    int64_t total = 0, shared = 0;
    for (size_t s = 0; s < plan.steps.size(); ++s) {
        const auto& step = plan.steps[s];
        const auto& parameters = step.op->parameters;
        if (!way.runs[s]) continue;
        const int64_t width = plan.widths[step.result];
        const auto wants = [&](size_t k) { return trained[plan.inputs + step.parameters + k] != 0; };
        tied[s] = shape.codes[s].adds_up && parameters[0].is_same(parameters[1]) && wants(0) && wants(1);
        for (size_t k = 0; k < parameters.size(); ++k) {
            if (!wants(k) || (k == 1 && tied[s])) continue;
            sums.push_back({s, k, std::max<int64_t>(1, parameters[k].numel() / width)});
            total += width * sums.back().rows;
            const int64_t values = sums.back().rows * shape.shared_values(width);
            if ((shared + values) * bytes > room) continue;
            sums.back().shared = std::exchange(shared, shared + values);
        }
    }
    Key key = {1};
    describe(plan, shape, key);
    key.insert(key.end(), given.begin(), given.end());
    key.insert(key.end(), trained.begin(), trained.end());
    key.insert(key.end(), tied.begin(), tied.end());
    const auto [kernel, threads] =
        compiled(kernels, like.device(), std::move(key), shape, shared * bytes,
                 [&] { return backward_source(plan, shape, way, given, trained, tied, sums); });

    Words words = {static_cast<uint64_t>(tokens)};
    std::vector<at::Tensor> keeps;
    for (const auto& input : inputs)
        words.push_back(input.defined() ? address(keeps.emplace_back(aligned(input))) : 0);
    for (const auto& grad : grads)
        words.push_back(grad.defined() ? address(keeps.emplace_back(aligned(grad))) : 0);
    for (size_t i = 0; i < plan.inputs; ++i) words.push_back(address(to[i]));
    add_operations(plan, shape, words, keeps);
    // Each block's sums are written and read once more: no more of them than hide the memory's latency.
    constexpr int kThreads = 1024;
    const int each = total ? std::min(kernel.blocks, std::max(1, kThreads / threads)) : kernel.blocks;
    const int64_t blocks = std::min<int64_t>(tokens, int64_t{kernels.processors()} * each);
    at::Tensor partial;
    if (total)
        partial = at::empty({blocks, total}, like.options().dtype(accumulate_dtype(like.scalar_type())));
    words.push_back(address(partial));
    kernels.launch(kernel, blocks, threads, words);
    if (!total) return;
    const auto summed = partial.sum(0);
    int64_t at = 0;
    for (const auto& sum : sums) {
        const auto& step = plan.steps[sum.step];
        const auto& parameter = step.op->parameters[sum.parameter];
        const int64_t values = sum.rows * plan.widths[step.result];
        auto own = summed.narrow(0, at, values);
        if (parameter.numel() < values) own = own.view({-1, parameter.numel()}).sum(0);
        to[plan.inputs + step.parameters + sum.parameter] = own.view(parameter.sizes());
        at += values;
    }
}

}  // namespace ether::ops
