#include "ether/ops/rows/part.h"

#include <algorithm>
#include <map>

namespace ether::ops {

Part::Part(const Plan& whole, const std::vector<size_t>& steps, const std::vector<size_t>& outputs) {
    std::map<size_t, size_t> own;  // of the whole graph's values
    for (const auto s : steps) own[whole.steps[s].result] = 0;
    for (const auto s : steps)
        for (const auto argument : whole.steps[s].arguments)
            if (own.emplace(argument, inputs.size()).second) inputs.push_back(argument);
    plan.inputs = inputs.size();
    for (const auto value : inputs) plan.widths.push_back(whole.widths[value]);
    for (const auto s : steps) {
        const auto& step = whole.steps[s];
        own[step.result] = plan.widths.size();
        plan.widths.push_back(whole.widths[step.result]);
        std::vector<size_t> arguments;
        for (const auto argument : step.arguments) arguments.push_back(own.at(argument));
        plan.steps.push_back({step.op, arguments, own.at(step.result), plan.parameters});
        plan.parameters += step.op->parameters.size();
        for (size_t k = 0; k < step.op->parameters.size(); ++k) parameters.push_back(step.parameters + k);
    }
    for (const auto value : outputs) {
        const size_t output = own.at(value);
        plan.outputs.push_back(output);
        if (std::find(plan.stored.begin(), plan.stored.end(), output) == plan.stored.end())
            plan.stored.push_back(output);
    }
}

std::vector<std::vector<size_t>> cut(const Plan& plan, const std::vector<char>& behind) {
    std::vector<std::vector<size_t>> parts(1);
    for (size_t s = 0; s < plan.steps.size(); ++s) {
        if (!parts.back().empty() && behind[parts.back().back()]) parts.emplace_back();
        parts.back().push_back(s);
    }
    return parts;
}

}  // namespace ether::ops
