#include "ether/ops/rows/gpu.h"

#include <ATen/Functions.h>

#include <algorithm>
#include <bit>

#include "ether/core/error.h"
#include "ether/ops/dispatch.h"
#include "ether/ops/gpu/launcher.h"
#include "ether/ops/gpu/program.h"
#include "ether/ops/rows/gpu_source.h"
#include "ether/ops/rows/part.h"

namespace ether::ops {
namespace {

using Words = std::vector<uint64_t>;
using Key = Kernels::Key;

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

// That a block of the graph's kernels may have of dynamic shared memory, in bytes, which begins at 16 of
// them.
int64_t free_room(const GpuShape& shape, const Kernels& kernels) {
    const auto value_bytes = static_cast<int64_t>(at::elementSize(accumulate_dtype(shape.dtype)));
    return kernels.shared_bytes() - (2 * std::max<int64_t>(1, shape.shared) * value_bytes + 15) / 16 * 16;
}

constexpr int64_t kMostRegisters = 255;  // of a thread

// Shares out a processor: registers to so many rows that an operation computes with, and what they leave to
// parameters; shared memory, what room.bytes leaves of it, to rows that are fetched ahead.
void share_processor(const Plan& plan, const GpuShape& shape, const Kernels& kernels,
                     const std::vector<Fetched>& fetched, int64_t rows, GpuRoom& room) {
    // Other: addresses and the like. Threads: of all blocks together, so many as hide the memory's latency.
    constexpr int64_t kOther = 28, kThreads = 768, kMostBlocks = 16;
    const auto words = static_cast<int64_t>(at::elementSize(accumulate_dtype(shape.dtype))) / 4;
    const auto registers = [&](int64_t width) { return shape.shared_values(width) / shape.threads * words; };
    // They are given out to four warps at a time, eight to a thread.
    const int64_t most =
        std::min(kMostRegisters, kernels.registers() / ((shape.threads + 127) / 128 * 128) / 8 * 8);
    int64_t needed = kOther + rows * registers(*std::max_element(plan.widths.begin(), plan.widths.end()));
    for (size_t s = 0; s < plan.steps.size(); ++s) {
        const int64_t own = shape.codes[s].held * registers(plan.widths[plan.steps[s].result]);
        room.held.push_back(own > 0 && needed + own <= most);
        if (room.held[s]) needed += own;
    }
    room.blocks = std::clamp<int64_t>(kernels.registers() / (shape.threads * needed), 1,
                                      std::clamp<int64_t>(kThreads / shape.threads, 1, kMostBlocks));

    int64_t bytes = 0;
    for (const auto& one : fetched) bytes += 2 * shape.shared_values(plan.widths[one.value]);
    bytes *= static_cast<int64_t>(at::elementSize(shape.dtype));
    room.staged = room.bytes + bytes <= free_room(shape, kernels);
    if (room.staged) room.bytes += bytes;
}

at::Tensor aligned(const at::Tensor& x) { return address(x) % 16 == 0 ? x : x.clone(); }

}  // namespace

std::optional<GpuShape> gpu_shape(const Plan& plan, const at::Tensor& like,
                                  const std::vector<char>* trained) {
    const auto dtype = like.scalar_type();
    if (!has_device_code(dtype) || !kernels_of(like.device()) || like.size(0) == 0) return {};
    GpuShape shape(plan, dtype);
    if (shape.threads == 0) return {};
    for (size_t s = 0; trained && s < plan.steps.size(); ++s)
        for (size_t k = 0; k < plan.steps[s].op->parameters.size(); ++k)
            if ((*trained)[plan.inputs + plan.steps[s].parameters + k] && !shape.codes[s].trains) return {};
    return shape;
}

void gpu_forward(const Plan& plan, const GpuShape& shape, const std::vector<at::Tensor>& inputs,
                 std::vector<at::Tensor>& stored) {
    const int64_t tokens = inputs.front().size(0);
    auto& kernels = *kernels_of(inputs.front().device());
    GpuRoom room;
    const int64_t rows = plan.steps.size() == 1 ? static_cast<int64_t>(plan.inputs) + 1 : 3;
    share_processor(plan, shape, kernels, fetched_forward(plan), rows, room);
    Key key = {Kernels::rows_forward};
    describe(plan, shape, key);
    const auto kernel = kernels.compiled(key, static_cast<int>(shape.threads), room.bytes,
                                         [&] { return forward_source(plan, shape, room); });

    Words words = {static_cast<uint64_t>(tokens)};
    std::vector<at::Tensor> keeps;
    for (const auto& input : inputs) words.push_back(address(keeps.emplace_back(aligned(input))));
    for (const auto& value : stored) words.push_back(address(value));
    add_operations(plan, shape, words, keeps);
    kernels.launch(kernel, std::min<int64_t>(tokens, int64_t{kernels.processors()} * kernel.blocks), words);
}

namespace {

// x (rows, columns), in an accumulation dtype -> (columns). Faster than libtorch's sum, whose blocks are few.
at::Tensor column_sums(const at::Tensor& x) {
    constexpr int kThreads = 1024;  // rows wait for memory one after the other: the more beside each other
    const int64_t rows = x.size(0), columns = x.size(1);
    auto& kernels = *kernels_of(x.device());
    const auto dtype = x.scalar_type();
    const auto kernel =
        kernels.compiled({Kernels::column_sums, static_cast<int64_t>(dtype)}, kThreads, 0, [&] {
            return program(
                {dtype, 1, kThreads, kThreads}, 4,
                "column_sums((const P*)a.word[1], (P*)a.word[2], rows, (Index)a.word[3], shared);\n");
        });
    const auto sums = at::empty({columns}, x.options());
    kernels.launch(kernel, (columns + 31) / 32,
                   {static_cast<uint64_t>(rows), address(x), address(sums), static_cast<uint64_t>(columns)});
    return sums;
}

// Gradients of parameters that a way back adds up.
struct Sums {
    std::vector<GpuSum> all;
    std::vector<char> tied;  // of a step: both parameters are one tensor
    int64_t total = 0;       // values of a block's sums

    Sums(const Plan& plan, const GpuShape& shape, const BackwardPlan& way, const std::vector<char>& trained)
        : tied(plan.steps.size()) {
        for (size_t s = 0; s < plan.steps.size(); ++s) {
            const auto& step = plan.steps[s];
            const auto& parameters = step.op->parameters;
            if (!way.runs[s]) continue;
            const auto wants = [&](size_t k) { return trained[plan.inputs + step.parameters + k] != 0; };
            tied[s] = shape.codes[s].adds_up && parameters[0].is_same(parameters[1]) && wants(0) && wants(1);
            for (size_t k = 0; k < parameters.size(); ++k) {
                if (!wants(k) || (k == 1 && tied[s])) continue;
                const int64_t width = plan.widths[step.result];
                all.push_back({s, k, std::max<int64_t>(1, parameters[k].numel() / width)});
                total += width * all.back().rows;
            }
        }
    }

    // Shares out a processor. Sums come first in shared memory, where registers would not hold them beside
    // the rows of an operation; then the rows that are fetched. On an H100 with 11,008 values a row sums in
    // shared memory gave .50 of the memory's rate instead of .36 in registers; with 4,096, .42 instead of
    // .63. Nothing where neither holds all sums, unless they must be: then the compiler finds them a place.
    std::optional<GpuRoom> share(const Plan& plan, const GpuShape& shape, const Kernels& kernels,
                                 const std::vector<Fetched>& fetched, bool must) {
        constexpr int64_t kOtherRows = 3;
        const auto value_bytes = static_cast<int64_t>(at::elementSize(accumulate_dtype(shape.dtype)));
        const int64_t widest = *std::max_element(plan.widths.begin(), plan.widths.end());
        int64_t rows = kOtherRows;
        for (const auto& sum : all) rows += sum.rows;
        const int64_t needed = shape.shared_values(widest) / shape.threads * rows;
        const int64_t registers =
            std::min(kMostRegisters, kernels.registers() / shape.threads) * 4 / value_bytes;
        const int64_t free = free_room(shape, kernels);
        const bool in_registers = needed * 10 <= registers * 9;
        GpuRoom room;
        for (auto& sum : all) {
            if (in_registers) break;
            const int64_t bytes =
                sum.rows * shape.shared_values(plan.widths[plan.steps[sum.step].result]) * value_bytes;
            const bool fits = room.bytes + bytes <= free;
            if (!fits && !must) return {};
            if (fits) sum.shared = std::exchange(room.bytes, room.bytes + bytes);
        }
        const int64_t summed = room.bytes;
        share_processor(plan, shape, kernels, fetched, in_registers ? rows + 1 : kOtherRows + 1, room);
        for (auto& sum : all)
            if (sum.shared >= 0) sum.shared += room.bytes - summed;
        return room;
    }

    // partial: (blocks, total)
    void hand_out(const Plan& plan, const at::Tensor& partial, std::vector<at::Tensor>& to) const {
        const auto summed = column_sums(partial);
        int64_t at = 0;
        for (const auto& sum : all) {
            const auto& step = plan.steps[sum.step];
            const auto& parameter = step.op->parameters[sum.parameter];
            const int64_t values = sum.rows * plan.widths[step.result];
            auto own = summed.narrow(0, at, values);
            if (parameter.numel() < values) own = own.view({-1, parameter.numel()}).sum(0);  // of each piece
            to[plan.inputs + step.parameters + sum.parameter] = own.view(parameter.sizes());
            at += values;
        }
    }
};

// Inputs' gradients that are an output's or another input's: one tensor. -> of an input, whether its gradient
// is to be written.
std::vector<char> share_gradients(const Plan& plan, const BackwardPlan& way, const std::vector<char>& trained,
                                  const std::vector<at::Tensor>& grads, std::vector<at::Tensor>& to) {
    std::vector<at::Tensor> of(plan.widths.size());  // of a value whose gradient lies somewhere
    for (size_t i = 0; i < grads.size(); ++i)
        if (grads[i].defined() && way.arrivals[plan.outputs[i]] == 1) of[plan.outputs[i]] = grads[i];
    std::vector<char> stores(plan.inputs);
    for (size_t i = 0; i < plan.inputs; ++i) {
        if (!to[i].defined() || !trained[i]) continue;
        auto& known = of[way.same[i]];
        stores[i] = !known.defined();
        if (known.defined())
            to[i] = known;
        else
            known = to[i];
    }
    return stores;
}

struct Backward {
    const Plan& plan;
    const GpuShape& shape;
    const std::vector<at::Tensor>&inputs, &grads;
    std::vector<at::Tensor>& to;
    int64_t tokens;

    // Makes the gradients of what is trained, in one pass over the rows; false if that would need more room
    // for sums than there is and it need not be.
    bool run(const std::vector<char>& trained, bool must) const {
        std::vector<char> given;
        for (const auto& grad : grads) given.push_back(grad.defined());
        const BackwardPlan way(plan, given, trained);
        Sums sums(plan, shape, way, trained);
        auto& kernels = *kernels_of(like().device());
        const auto room = sums.share(plan, shape, kernels, fetched_backward(plan, way, given), must);
        if (!room) return false;
        const auto stores = share_gradients(plan, way, trained, grads, to);
        if (sums.total == 0 && std::count(stores.begin(), stores.end(), 1) == 0) return true;
        Key key = {Kernels::rows_backward};
        describe(plan, shape, key);
        for (const std::vector<char>& flags : {given, trained, sums.tied})
            key.insert(key.end(), flags.begin(), flags.end());
        const int threads = static_cast<int>(shape.threads);
        const auto kernel = kernels.compiled(key, threads, room->bytes, [&] {
            return backward_source(plan, shape, way, given, trained, sums.tied, stores, *room, sums.all);
        });

        Words words = {static_cast<uint64_t>(tokens)};
        std::vector<at::Tensor> keeps;
        for (const auto& input : inputs)
            words.push_back(input.defined() ? address(keeps.emplace_back(aligned(input))) : 0);
        for (const auto& grad : grads)
            words.push_back(grad.defined() ? address(keeps.emplace_back(aligned(grad))) : 0);
        for (size_t i = 0; i < plan.inputs; ++i) words.push_back(address(to[i]));
        add_operations(plan, shape, words, keeps);
        // Each block's sums are written and read once more: no more blocks than hide the memory's latency.
        constexpr int kThreads = 1024;
        const int each =
            sums.total ? std::min(kernel.blocks, std::max(1, kThreads / threads)) : kernel.blocks;
        const int64_t blocks = std::min<int64_t>(tokens, int64_t{kernels.processors()} * each);
        at::Tensor partial;
        if (sums.total)
            partial = at::empty({blocks, sums.total}, like().options().dtype(accumulate_dtype(shape.dtype)));
        words.push_back(address(partial));
        kernels.launch(kernel, blocks, words);
        if (sums.total) sums.hand_out(plan, partial, to);
        return true;
    }

    // The same in parts, each with one step that is trained: six rows of sums of 11,008 values have no room,
    // and making all values again for each step's sums took 1,300 us where all parts move 950 MB, 230 us'
    // worth.
    void run_in_parts(const std::vector<char>& trained) const {
        std::vector<char> given, cuts;
        for (const auto& grad : grads) given.push_back(grad.defined());
        const BackwardPlan way(plan, given, trained);
        for (const auto& step : plan.steps) {
            const auto first = trained.begin() + static_cast<int64_t>(plan.inputs + step.parameters);
            cuts.push_back(std::count(first, first + static_cast<int64_t>(step.op->parameters.size()), 1) >
                           0);
        }
        const auto parts = cut(plan, cuts);
        if (parts.size() == 1) {
            run(trained, true);
            return;
        }
        std::vector<at::Tensor> values = inputs;  // of the whole graph, where a later part reads them
        values.resize(plan.widths.size());
        const auto of = [&](const Part& part) {
            std::vector<at::Tensor> own;
            for (const auto value : part.inputs) own.push_back(values[value]);
            return own;
        };
        for (const auto& steps : parts) make_again(way, steps, values, of);

        std::vector<std::vector<at::Tensor>> arrived(plan.widths.size());  // gradients
        for (size_t i = 0; i < grads.size(); ++i)
            if (grads[i].defined()) arrived[plan.outputs[i]].push_back(grads[i]);
        for (size_t p = parts.size(); p-- > 0;) {
            std::vector<size_t> outputs;
            std::vector<at::Tensor> own_grads;
            for (const auto s : parts[p])
                for (const auto& grad : arrived[plan.steps[s].result]) {
                    outputs.push_back(plan.steps[s].result);
                    own_grads.push_back(grad);
                }
            if (outputs.empty()) continue;
            const Part part(plan, parts[p], outputs);
            std::vector<char> own_trained;
            std::vector<at::Tensor> own_to(part.plan.inputs + part.plan.parameters);
            for (const auto value : part.inputs) own_trained.push_back(way.wants_grad[value]);
            for (const auto parameter : part.parameters)
                own_trained.push_back(trained[plan.inputs + parameter]);
            const BackwardPlan own_way(part.plan, std::vector<char>(outputs.size(), 1), own_trained);
            for (size_t i = 0; i < part.plan.inputs; ++i)
                if (own_trained[i] && own_way.arrivals[i] > 0)
                    own_to[i] = at::empty({tokens, part.plan.widths[i]}, like().options());
            const auto own_inputs = of(part);
            const GpuShape own_shape(part.plan, shape.dtype);
            Backward{part.plan, own_shape, own_inputs, own_grads, own_to, tokens}.run(own_trained, true);
            for (const auto s : parts[p]) {  // which are needed no longer
                arrived[plan.steps[s].result].clear();
                values[plan.steps[s].result].reset();
            }
            for (size_t i = 0; i < part.plan.inputs; ++i)
                if (own_to[i].defined()) arrived[part.inputs[i]].push_back(own_to[i]);
            for (size_t i = 0; i < part.parameters.size(); ++i)
                if (own_to[part.plan.inputs + i].defined())
                    to[plan.inputs + part.parameters[i]] = own_to[part.plan.inputs + i];
        }
        for (size_t i = 0; i < plan.inputs; ++i) {
            if (!to[i].defined() || arrived[i].empty()) continue;
            to[i] = arrived[i].front();
            for (size_t k = 1; k < arrived[i].size(); ++k) to[i] = to[i] + arrived[i][k];
        }
    }

    // Of these steps' results, those that others read and that the way back needs.
    void make_again(const BackwardPlan& way, const std::vector<size_t>& steps,
                    std::vector<at::Tensor>& values, const auto& inputs_of) const {
        std::vector<size_t> made, outputs;
        for (const auto s : steps)
            if (way.computed[plan.steps[s].result]) made.push_back(s);
        for (const auto s : made)
            for (size_t later = steps.back() + 1; later < plan.steps.size(); ++later) {
                const auto& arguments = plan.steps[later].arguments;
                if (std::find(arguments.begin(), arguments.end(), plan.steps[s].result) == arguments.end())
                    continue;
                outputs.push_back(plan.steps[s].result);
                break;
            }
        if (outputs.empty()) return;
        const Part part(plan, made, outputs);
        std::vector<at::Tensor> stored;
        for (const auto value : part.plan.stored)
            stored.push_back(at::empty({tokens, part.plan.widths[value]}, like().options()));
        gpu_forward(part.plan, GpuShape(part.plan, shape.dtype), inputs_of(part), stored);
        for (size_t i = 0; i < outputs.size(); ++i) values[outputs[i]] = stored[i];
    }
    const at::Tensor& like() const {
        return *std::find_if(grads.begin(), grads.end(),
                             [](const at::Tensor& grad) { return grad.defined(); });
    }
};

}  // namespace

void gpu_backward(const Plan& plan, const GpuShape& shape, const std::vector<at::Tensor>& inputs,
                  const std::vector<at::Tensor>& grads, const std::vector<char>& trained,
                  std::vector<at::Tensor>& to, int64_t tokens) {
    const Backward backward{plan, shape, inputs, grads, to, tokens};
    if (!backward.run(trained, false)) backward.run_in_parts(trained);
}

}  // namespace ether::ops
