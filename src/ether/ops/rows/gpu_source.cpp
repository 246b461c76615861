#include "ether/ops/rows/gpu_source.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <numeric>

#include "ether/ops/dispatch.h"
#include "ether/ops/rows/device_code.h"

namespace ether::ops {
namespace {

constexpr int64_t kMostThreads = 512, kMostShared = 48 << 10, kMostChunks = 8;

const char* stored_type(at::ScalarType dtype) {
    return dtype == at::kDouble ? "double" : dtype == at::kFloat ? "float" : "BFloat16";
}

// The text of a kernel, line by line, and the numbers of its arguments.
class KernelText {
  public:
    KernelText(const Plan& plan, const GpuShape& shape) : plan_(plan), shape_(shape) {}

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

    // Names what each step's operation is given: call<step>() and Op<step>.
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
            const auto parameters = list(step.op->parameters.size(), "(const P*)", ", ");
            const auto words = list(code.words.size(), "", ", ");
            const auto numbers = list(code.numbers.size(), "__longlong_as_double(", "), ");
            line("typedef {}> Op{};", type, s);
            line("auto call{} = [&](Index row) {{ return Call{{row, shared, {{{}}}, {{{}}}, {{{}}}}}; }};", s,
                 parameters, words, numbers);
        }
    }

    // Opens the loop over rows, each turn of which takes arrived<i>, a value of the graph: fetched a turn
    // ahead.
    void begin_rows(const std::vector<std::pair<size_t, std::string>>& fetched) {
        line("Index row = blockIdx.x;");
        for (size_t i = 0; i < fetched.size(); ++i) {
            line("Coming<{}, Stored> coming{};", width(fetched[i].first), i);
            line("coming{}.fetch((const Stored*){}, row, rows);", i, fetched[i].second);
        }
        line("for (; row < rows; row += gridDim.x) {{");
        for (size_t i = 0; i < fetched.size(); ++i) {
            line("Row<{}> arrived{};", width(fetched[i].first), i);
            line("coming{}.take(arrived{});", i, i);
        }
        for (size_t i = 0; i < fetched.size(); ++i)
            line("coming{}.fetch((const Stored*){}, row + gridDim.x, rows);", i, fetched[i].second);
    }
    void declare(size_t value) { line("Row<{}> v{};", width(value), value); }
    void store(const char* name, size_t value, const std::string& to) {
        line("store({}{}, (Stored*){} + row * {});", name, value, to, width(value));
    }
    void run(size_t s) {
        const auto& step = plan_.steps[s];
        line("Op{}::forward(call{}(row), v{}, v{}, v{});", s, s, step.result, step.arguments.front(),
             step.arguments.back());
    }

    std::string finish() const {
        std::string all =
            fmt::format("typedef {} P;\nconstexpr int V = {}, kThreads = {}, kSharedValues = {};\n",
                        shape_.dtype == at::kDouble ? "double" : "float", shape_.chunk, shape_.threads,
                        std::max<int64_t>(1, shape_.shared));
        all += kDeviceCode;
        all += fmt::format("typedef {} Stored;\nstruct Arguments {{ unsigned long long word[{}]; }};\n",
                           stored_type(shape_.dtype), words_);
        all +=
            "extern \"C\" __global__ void __launch_bounds__(kThreads) kernel(const Arguments a) {\n"
            "__shared__ P shared[kSharedValues];\nconst Index rows = (Index)a.word[0];\n";
        return all + body_ + "}\n";
    }

  protected:
    const Plan& plan_;
    const GpuShape& shape_;

  private:
    std::string body_;
    size_t words_ = 1;  // the number of rows is the first
};

class BackwardText : public KernelText {
  public:
    BackwardText(const Plan& plan, const GpuShape& shape, const BackwardPlan& way,
                 const std::vector<GpuSum>& sums)
        : KernelText(plan, shape), way_(way), sums_(sums), arrived_(plan.widths.size()) {}

    int64_t sum_width(const GpuSum& sum) const { return width(plan_.steps[sum.step].result); }

    void begin_sums() {
        line("Nothing nothing;");
        for (size_t i = 0; i < sums_.size(); ++i) {
            const int64_t wide = sum_width(sums_[i]);
            if (sums_[i].shared >= 0)
                line("SharedRows<{}> sum{}{{dynamic_shared() + {}}};", wide, i, sums_[i].shared);
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
    bool arrived(size_t value) const { return arrived_[value]; }

    void run_back(size_t s, const std::vector<char>& trained, bool tied) {
        const auto& step = plan_.steps[s];
        std::string mask = "0";
        for (size_t k = 0; k < step.arguments.size(); ++k)
            if (way_.wants_grad[step.arguments[k]]) mask += fmt::format(" | kArgument{}", k);
        for (size_t k = 0; k < step.op->parameters.size(); ++k)
            if (trained[plan_.inputs + step.parameters + k]) mask += fmt::format(" | kParameter{}", k);
        if (tied) mask += " | kTied";
        line("{{ Row<{}> of_argument0, of_argument1;", width(step.result));
        line("Op{}::backward<{}>(call{}(row), g{}, v{}, v{}, of_argument0, of_argument1, {}, {});", s, mask,
             s, step.result, step.arguments.front(), step.arguments.back(), sum_of(s, 0), sum_of(s, 1));
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
    for (size_t s = 0; s < codes.size(); ++s) {
        const int64_t width = plan.widths[plan.steps[s].result], chunks = width / chunk;
        const int64_t segments = codes[s].piece ? width / codes[s].piece : 1;
        int64_t needed = 0;
        if (codes[s].sums) needed = codes[s].sums * (segments == 1 ? 32 : chunks + segments);
        if (codes[s].exchanges) needed = std::max(needed, width);
        shared = std::max(shared, needed);
    }
    const int64_t chunks = widest / chunk, own = (chunks + kMostThreads - 1) / kMostThreads;
    const auto bytes = static_cast<int64_t>(at::elementSize(accumulate_dtype(dtype)));
    if (own > kMostChunks || shared * bytes > kMostShared) return;
    // Two chunks a thread where there are enough: loads in flight.
    const int64_t each = own == 1 && chunks >= 384 ? 2 : own;
    threads = ((chunks + each - 1) / each + 31) / 32 * 32;
}

std::string forward_source(const Plan& plan, const GpuShape& shape) {
    KernelText text(plan, shape);
    const auto inputs = text.words(plan.inputs), stored = text.words(plan.stored.size());
    text.operations();
    std::vector<std::pair<size_t, std::string>> fetched;
    for (size_t i = 0; i < plan.inputs; ++i) fetched.emplace_back(i, inputs[i]);
    text.begin_rows(fetched);
    for (size_t i = 0; i < plan.inputs; ++i) text.line("const auto& v{} = arrived{};", i, i);
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
                            const std::vector<char>& tied, const std::vector<GpuSum>& sums) {
    BackwardText text(plan, shape, way, sums);
    const auto inputs = text.words(plan.inputs), grads = text.words(given.size()),
               input_grads = text.words(plan.inputs);
    text.operations();
    const auto partial = text.word();
    text.begin_sums();

    const auto reads = [&](size_t output) { return given[output] && way.wants_grad[plan.outputs[output]]; };
    std::vector<std::pair<size_t, std::string>> fetched;
    for (size_t i = 0; i < plan.inputs; ++i)
        if (way.computed[i]) fetched.emplace_back(i, inputs[i]);
    for (size_t i = 0; i < given.size(); ++i)
        if (reads(i)) fetched.emplace_back(plan.outputs[i], grads[i]);
    text.begin_rows(fetched);

    size_t next = 0;  // of what was fetched
    for (size_t i = 0; i < plan.inputs; ++i) {
        if (way.computed[i])
            text.line("const auto& v{} = arrived{};", i, next++);
        else
            text.declare(i);
    }
    for (size_t s = 0; s < plan.steps.size(); ++s) {
        text.declare(plan.steps[s].result);
        if (way.computed[plan.steps[s].result]) text.run(s);
    }
    for (size_t i = 0; i < plan.widths.size(); ++i)
        if (way.arrivals[i] > 0 && way.wants_grad[i]) text.line("Row<{}> g{};", plan.widths[i], i);
    for (size_t i = 0; i < given.size(); ++i)
        if (reads(i)) text.arrive(plan.outputs[i], fmt::format("arrived{}", next++));
    for (size_t s = plan.steps.size(); s-- > 0;)
        if (way.runs[s]) text.run_back(s, trained, tied[s]);
    for (size_t i = 0; i < plan.inputs; ++i)
        if (trained[i] && text.arrived(i)) text.store("g", i, input_grads[i]);
    text.line("}}");
    text.store_sums(partial);
    return text.finish();
}

}  // namespace ether::ops
