#include "ether/ops/rows/plan.h"

#include <algorithm>
#include <numeric>

namespace ether::ops {
namespace {

char parameters_trained(const Plan& plan, const Plan::Step& step, const std::vector<char>& trained) {
    char any = 0;
    for (size_t k = 0; k < step.op->parameters.size(); ++k) any |= trained[plan.inputs + step.parameters + k];
    return any;
}

}  // namespace

BackwardPlan::BackwardPlan(const Plan& plan, const std::vector<char>& given, const std::vector<char>& trained)
    : wants_grad(plan.widths.size()),
      arrivals(plan.widths.size()),
      computed(plan.widths.size()),
      runs(plan.steps.size()),
      same(plan.widths.size()) {
    std::copy_n(trained.begin(), plan.inputs, wants_grad.begin());
    for (const auto& step : plan.steps) {
        char wanted = parameters_trained(plan, step, trained);
        for (const auto argument : step.arguments) wanted |= wants_grad[argument];
        wants_grad[step.result] = wanted;
    }
    for (size_t i = 0; i < given.size(); ++i) arrivals[plan.outputs[i]] += given[i];
    for (size_t i = plan.steps.size(); i-- > 0;) {
        const auto& step = plan.steps[i];
        if (!arrivals[step.result] || !wants_grad[step.result]) continue;
        runs[i] = 1;
        for (const auto argument : step.arguments) arrivals[argument] += wants_grad[argument];
        if (step.op->reads_arguments(parameters_trained(plan, step, trained)))
            for (const auto argument : step.arguments) computed[argument] = 1;
    }
    std::iota(same.begin(), same.end(), size_t{0});
    for (size_t i = plan.steps.size(); i-- > 0;) {
        const auto& step = plan.steps[i];
        if (!runs[i] || !step.op->passes_gradient()) continue;
        for (const auto argument : step.arguments)
            if (arrivals[argument] == 1) same[argument] = same[step.result];
    }
    for (size_t i = plan.steps.size(); i-- > 0;)
        if (computed[plan.steps[i].result])
            for (const auto argument : plan.steps[i].arguments) computed[argument] = 1;
}

}  // namespace ether::ops
