#include "ether/ops/rows/gpu_source.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <iterator>
#include <numeric>
#include <set>

#include "ether/ops/dispatch.h"
#include "ether/ops/gpu/program.h"

namespace ether::ops {
namespace {

constexpr int64_t kMostThreads = 1024, kMostShared = 48 << 10, kMostChunks = 8;

// The body of a kernel, line by line, and the numbers of its arguments.
class KernelText {
  public:
    // fetched: the values whose rows come from memory (fetched_forward(), fetched_backward()).
    KernelText(const Plan& plan, const GpuShape& shape, const std::vector<Fetched>& fetched,
               const GpuRoom& room)
        : plan_(plan), shape_(shape), fetched_(fetched), room_(room) {}

    template <typename... Arguments>
    void line(fmt::format_string<Arguments...> format, Arguments&&... arguments) {
        fmt::format_to(std::back_inserter(body_), format, std::forward<Arguments>(arguments)...);
        body_ += '\n';
    }

    // The next arguments.
    std::string word() { return fmt::format("a.word[{}]", words_++); }
    std::vector<std::string> words(size_t count) {
        std::vector<std::string> result(count);
        for (auto& one : result) one = word();
        return result;
    }

    int64_t width(size_t value) const { return plan_.widths[value]; }

    // Makes each step's operation, op<step>, and names what it is given beside: call<step>().
    void operations() {
        for (size_t s = 0; s < plan_.steps.size(); ++s) {
            const auto& step = plan_.steps[s];
            const auto& code = shape_.codes[s];
            std::string type = fmt::format("{}<{}", code.name, width(step.result));
            for (const int constant : code.constants) type += fmt::format(", {}", constant);
            auto list = [&](size_t count, const char* before, const char* after) {
                std::string all;
                for (size_t i = 0; i < count; ++i) all += before + word() + after;
                return all;
            };
            if (!step.op->parameters.empty()) type += room_.held[s] ? ", true" : ", false";
            const auto parameters = list(step.op->parameters.size(), "(const P*)", ", ");
            const auto words = list(code.words.size(), "", ", ");
            const auto numbers = list(code.numbers.size(), "__longlong_as_double(", "), ");
            line("const {}> op{}{{{}}};", type, s, parameters);
            line("auto call{} = [&](Index row) {{ return Call{{row, shared, {{{}}}, {{{}}}}}; }};", s, words,
                 numbers);
        }
    }

    // Opens the loop over rows, which lie at `from`; source<i> has the i-th fetched value's row from then on.
    void begin_rows(const std::vector<std::string>& from) {
        const size_t count = fetched_.size();
        int64_t at = 0;  // in shared memory
        for (size_t i = 0; i < count; ++i) {
            const int64_t wide = width(fetched_[i].value);
            line("{}<{}, Stored> source{}((const Stored*){}, dynamic_shared() + {});",
                 room_.staged ? "Staged" : "Plain", wide, i, from[i], at);
            at += 2 * shape_.shared_values(wide) * static_cast<int64_t>(at::elementSize(shape_.dtype));
        }
        const auto fetch = [&](const char* row) {
            for (size_t i = 0; i < count; ++i) line("source{}.fetch({}, rows);", i, row);
            line("end_of_copies();");
        };
        line("Index row = blockIdx.x;");
        if (room_.staged) fetch("row");
        line("for (; row < rows; row += gridDim.x) {{");
        for (size_t i = 0; i < count; ++i) line("source{}.turn(row);", i);
        if (!room_.staged) return;
        fetch("row + gridDim.x");
        line("wait_for_copies();");
    }
    void declare(size_t value) { line("Row<{}> v{};", width(value), value); }
    // v<i> of the step's arguments; of one that is not read, whatever.
    void take_arguments(const Plan::Step& step) {
        for (const auto value : std::set(step.arguments.begin(), step.arguments.end())) {
            if (value >= plan_.inputs) continue;
            const auto found = std::find(fetched_.begin(), fetched_.end(), Fetched{value});
            if (found == fetched_.end())
                declare(value);
            else
                line("const auto v{} = source{}.take();", value, found - fetched_.begin());
        }
    }
    void store(const char* name, size_t value, const std::string& to) {
        line("store({}{}, (Stored*){} + row * {});", name, value, to, width(value));
    }
    void run(size_t s) {
        const auto& step = plan_.steps[s];
        line("{{");
        take_arguments(step);
        line("op{}.forward(call{}(row), v{}, v{}, v{}); }}", s, s, step.result, step.arguments.front(),
             step.arguments.back());
    }

    std::string finish() const {
        return program({shape_.dtype, shape_.chunk, shape_.threads, shape_.shared, room_.blocks}, words_,
                       body_);
    }

  protected:
    const Plan& plan_;
    const GpuShape& shape_;
    const std::vector<Fetched>& fetched_;
    const GpuRoom& room_;

  private:
    std::string body_;
    size_t words_ = 1;  // the number of rows is the first
};

class BackwardText : public KernelText {
  public:
    BackwardText(const Plan& plan, const GpuShape& shape, const BackwardPlan& way,
                 const std::vector<Fetched>& fetched, const GpuRoom& room, const std::vector<GpuSum>& sums)
        : KernelText(plan, shape, fetched, room), way_(way), sums_(sums), arrived_(plan.widths.size()) {}

    int64_t sum_width(const GpuSum& sum) const { return width(plan_.steps[sum.step].result); }

    void begin_sums() {
        line("Nothing nothing;");
        for (size_t i = 0; i < sums_.size(); ++i) {
            const int64_t wide = sum_width(sums_[i]);
            if (sums_[i].shared >= 0)
                line("SharedRows<{}> sum{}{{(P*)(dynamic_shared() + {})}};", wide, i, sums_[i].shared);
            else
                line("Row<{}> sum{}[{}];", wide, i, sums_[i].rows);
            line("for (int k = 0; k < {}; ++k) clear<{}>(sum{}[k]);", sums_[i].rows, wide, i);
        }
    }
    void store_sums(const std::string& to) {
        int64_t total = 0, at = 0;
        for (const auto& sum : sums_) total += sum.rows * sum_width(sum);
        for (size_t i = 0; i < sums_.size(); ++i)
            for (int64_t k = 0; k < sums_[i].rows; ++k, at += sum_width(sums_[i]))
                line("store_sum<{}>(sum{}[{}], (P*){} + (Index)blockIdx.x * {} + {});", sum_width(sums_[i]),
                     i, k, to, total, at);
    }

    // A value's gradient, or one more part of it, is this row.
    void arrive(size_t value, const std::string& row) {
        if (std::exchange(arrived_[value], 1))
            line("add_to(g{}, {});", value, row);
        else
            line("g{} = {};", value, row);
    }
    // Of the outputs that are this value.
    void arrive_outputs(size_t value) {
        for (size_t i = 0; i < fetched_.size(); ++i)
            if (fetched_[i].gradient && fetched_[i].value == value)
                arrive(value, fmt::format("source{}.take()", i));
    }

    void run_back(size_t s, const std::vector<char>& trained, bool tied) {
        const auto& step = plan_.steps[s];
        std::string mask = "0";
        for (size_t k = 0; k < step.arguments.size(); ++k)
            if (way_.wants_grad[step.arguments[k]]) mask += fmt::format(" | kArgument{}", k);
        for (size_t k = 0; k < step.op->parameters.size(); ++k)
            if (trained[plan_.inputs + step.parameters + k]) mask += fmt::format(" | kParameter{}", k);
        if (tied) mask += " | kTied";
        line("{{ Row<{}> of_argument0, of_argument1;", width(step.result));
        take_arguments(step);
        line("op{}.backward<{}>(call{}(row), g{}, v{}, v{}, of_argument0, of_argument1, {}, {});", s, mask, s,
             step.result, step.arguments.front(), step.arguments.back(), sum_of(s, 0), sum_of(s, 1));
        for (size_t k = 0; k < step.arguments.size(); ++k)
            if (way_.wants_grad[step.arguments[k]])
                arrive(step.arguments[k], fmt::format("of_argument{}", k));
        line("}}");
    }

  private:
    std::string sum_of(size_t step, size_t parameter) const {
        for (size_t i = 0; i < sums_.size(); ++i)
            if (sums_[i].step == step && sums_[i].parameter == parameter) return fmt::format("sum{}", i);
        return "nothing";
    }

    const BackwardPlan& way_;
    const std::vector<GpuSum>& sums_;
    std::vector<char> arrived_;
};

}  // namespace

GpuShape::GpuShape(const Plan& plan, at::ScalarType dtype) : dtype(dtype) {
    int64_t widest = 0;
    chunk = 8;
    for (const auto width : plan.widths) {
        widest = std::max(widest, width);
        chunk = std::gcd(chunk, width);
    }
    for (const auto& step : plan.steps) {
        auto code = step.op->device_code();
        if (!code) return;
        for (const auto argument : step.arguments)
            if (plan.widths[argument] != plan.widths[step.result]) return;
        if (code->piece) chunk = std::gcd(chunk, code->piece);
        codes.push_back(std::move(*code));
    }
    const int64_t chunks = widest / chunk, most = (chunks + kMostThreads - 1) / kMostThreads;
    // Two chunks a thread where there are enough: loads in flight.
    const int64_t each = most == 1 && chunks >= 384 ? 2 : most;
    if (each > kMostChunks) return;
    const int64_t warps = ((chunks + each - 1) / each + 31) / 32;
    for (size_t s = 0; s < codes.size(); ++s) {
        const auto& code = codes[s];
        const int64_t width = plan.widths[plan.steps[s].result], own = width / chunk;
        const int64_t piece = code.piece ? code.piece : width, part = piece / chunk;
        if (code.sums)
            shared = std::max(shared, code.sums * (part == own  ? warps
                                                   : part >= 32 ? 2 * (own / 32 + warps)
                                                                : own + width / piece));
        const int64_t distance = code.distance / chunk;
        const bool by_shuffles = distance <= 16 && std::has_single_bit(static_cast<uint64_t>(distance));
        if (code.distance && !by_shuffles) shared = std::max(shared, width);
    }
    const auto bytes = static_cast<int64_t>(at::elementSize(accumulate_dtype(dtype)));
    if (2 * shared * bytes <= kMostShared) threads = 32 * warps;
}

std::vector<Fetched> fetched_forward(const Plan& plan) {
    std::vector<Fetched> fetched;
    for (size_t i = 0; i < plan.inputs; ++i) fetched.push_back({i});
    return fetched;
}
std::vector<Fetched> fetched_backward(const Plan& plan, const BackwardPlan& way,
                                      const std::vector<char>& given) {
    std::vector<Fetched> fetched;
    for (size_t i = 0; i < plan.inputs; ++i)
        if (way.computed[i]) fetched.push_back({i});
    for (size_t i = 0; i < given.size(); ++i)
        if (given[i] && way.wants_grad[plan.outputs[i]]) fetched.push_back({plan.outputs[i], true, i});
    return fetched;
}

std::string forward_source(const Plan& plan, const GpuShape& shape, const GpuRoom& room) {
    const auto fetched = fetched_forward(plan);
    KernelText text(plan, shape, fetched, room);
    const auto inputs = text.words(plan.inputs), stored = text.words(plan.stored.size());
    text.operations();
    text.begin_rows(inputs);
    for (size_t s = 0; s < plan.steps.size(); ++s) {
        const size_t result = plan.steps[s].result;
        text.declare(result);
        text.run(s);
        for (size_t i = 0; i < stored.size(); ++i)
            if (plan.stored[i] == result) text.store("v", result, stored[i]);
    }
    text.line("}}");
    return text.finish();
}

std::string backward_source(const Plan& plan, const GpuShape& shape, const BackwardPlan& way,
                            const std::vector<char>& given, const std::vector<char>& trained,
                            const std::vector<char>& tied, const std::vector<char>& stores,
                            const GpuRoom& room, const std::vector<GpuSum>& sums) {
    const auto fetched = fetched_backward(plan, way, given);
    BackwardText text(plan, shape, way, fetched, room, sums);
    const auto inputs = text.words(plan.inputs), grads = text.words(given.size()),
               input_grads = text.words(plan.inputs);
    text.operations();
    const auto partial = text.word();
    text.begin_sums();
    std::vector<std::string> from;
    for (const auto& one : fetched) from.push_back(one.gradient ? grads[one.output] : inputs[one.value]);
    text.begin_rows(from);

    for (size_t s = 0; s < plan.steps.size(); ++s) {
        text.declare(plan.steps[s].result);
        if (way.computed[plan.steps[s].result]) text.run(s);
    }
    for (size_t i = 0; i < plan.widths.size(); ++i)
        if (way.arrivals[i] > 0 && way.wants_grad[i]) text.line("Row<{}> g{};", plan.widths[i], i);
    for (size_t s = plan.steps.size(); s-- > 0;) {
        text.arrive_outputs(plan.steps[s].result);
        if (way.runs[s]) text.run_back(s, trained, tied[s]);
    }
    for (size_t i = 0; i < plan.inputs; ++i)
        if (stores[i]) text.store("g", i, input_grads[i]);
    text.line("}}");
    text.store_sums(partial);
    return text.finish();
}

}  // namespace ether::ops
