#include "ether/ops/rows/rows.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>

#include "ether/core/parallel.h"
#include "ether/ops/dispatch.h"
#include "ether/ops/isa.h"
#include "ether/ops/vector.h"

namespace ether::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int64_t kGrain = 16;  // tokens below which another thread costs more than it saves
constexpr int64_t kTile = 8;    // tokens: a handful of rows of a wide layer stay in a core's second cache

// What run() runs: the part of a graph that its outputs need, in order, with values numbered anew (inputs
// first). Immutable, shared by forward and backward.
struct Plan : torch::CustomClassHolder {
    struct Step {
        std::shared_ptr<const RowOp> op;
        std::vector<size_t> arguments;
        size_t result;
        size_t parameters;  // index of its first one among all
    };
    std::vector<Step> steps;
    std::vector<int64_t> widths;  // of each value
    std::vector<size_t> outputs;  // a value that several products read is several outputs
    std::vector<size_t> stored;   // each of these once
    size_t inputs = 0, parameters = 0;
};
using PlanPtr = c10::intrusive_ptr<Plan>;

// Which values and gradients backward takes. Found once, before the first tile.
struct BackwardPlan {
    std::vector<char> wants_grad;  // of a value: something trained lies before it, or it is an input that is
    std::vector<int> arrivals;     // gradients that are added up to the value's own
    std::vector<char> computed;    // the value is made once more
    std::vector<char> runs;        // of a step

    // given: whether an output's gradient is defined; trained: of inputs, then parameters.
    BackwardPlan(const Plan& plan, const std::vector<char>& given, const std::vector<char>& trained)
        : wants_grad(plan.widths.size()),
          arrivals(plan.widths.size()),
          computed(plan.widths.size()),
          runs(plan.steps.size()) {
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
        for (size_t i = plan.steps.size(); i-- > 0;)
            if (computed[plan.steps[i].result])
                for (const auto argument : plan.steps[i].arguments) computed[argument] = 1;
    }

  private:
    static char parameters_trained(const Plan& plan, const Plan::Step& step,
                                   const std::vector<char>& trained) {
        char any = 0;
        for (size_t k = 0; k < step.op->parameters.size(); ++k)
            any |= trained[plan.inputs + step.parameters + k];
        return any;
    }
};

template <typename From, typename To>
void convert(const From* from, To* to, int64_t count) {
    using P = accumulate_t<From>;
    for_values<P>(count,
                  [&](int64_t j, const auto& lanes) { store<P>(to + j, load<P>(from + j, lanes), lanes); });
}

// Rows of a tensor as P: in place where it holds P, else converted through `scratch`.
template <typename X, typename P>
const P* read_rows(const at::Tensor& tensor, int64_t first, int64_t count, int64_t width, P* scratch) {
    const X* from = tensor.const_data_ptr<X>() + first * width;
    if constexpr (std::is_same_v<X, P>) {
        return from;
    } else {
        convert(from, scratch, count * width);
        return scratch;
    }
}

// Where rows of a tensor are written as P, and what brings them there.
template <typename X, typename P>
P* rows_to_write(at::Tensor& tensor, int64_t first, int64_t width, P* scratch) {
    if constexpr (std::is_same_v<X, P>)
        return tensor.mutable_data_ptr<X>() + first * width;
    else
        return scratch;
}
template <typename X, typename P>
void finish_rows(at::Tensor& tensor, int64_t first, int64_t count, int64_t width, const P* rows) {
    X* to = tensor.mutable_data_ptr<X>() + first * width;
    if constexpr (std::is_same_v<X, P>) {
        if (rows != to) std::copy_n(rows, count * width, to);
    } else {
        convert(rows, to, count * width);
    }
}

// A tile's rows of every value, one after the other.
template <typename P>
class Scratch {
  public:
    explicit Scratch(const std::vector<int64_t>& widths) {
        for (const auto width : widths) {
            offsets_.push_back(total_);
            total_ += kTile * width;
        }
        data_.reset(new P[static_cast<size_t>(total_)]);
    }
    P* operator[](size_t value) { return data_.get() + offsets_[value]; }

  private:
    std::vector<int64_t> offsets_;
    int64_t total_ = 0;
    std::unique_ptr<P[]> data_;
};

template <typename P>
void set_arguments(const Plan::Step& step, const std::vector<const P*>& values, RowTile<P>& tile) {
    tile.x = {};
    tile.parameters = {};
    for (size_t i = 0; i < step.arguments.size(); ++i) tile.x[i] = values[step.arguments[i]];
    for (size_t k = 0; k < step.op->parameters.size(); ++k)
        tile.parameters[k] = step.op->parameters[k].template const_data_ptr<P>();
}

template <typename X>
void run_forward(const Plan& plan, const std::vector<at::Tensor>& inputs, std::vector<at::Tensor>& stored) {
    using P = accumulate_t<X>;
    const int64_t tokens = inputs.front().size(0);
    parallel_for(tokens, kGrain, [&](int, int64_t begin, int64_t end) {
        Scratch<P> scratch(plan.widths);
        std::vector<const P*> values(plan.widths.size());
        for (RowTile<P> tile{.first = begin}; tile.first < end; tile.first += kTile) {
            tile.count = std::min(kTile, end - tile.first);
            for (size_t i = 0; i < plan.inputs; ++i)
                values[i] = read_rows<X, P>(inputs[i], tile.first, tile.count, plan.widths[i], scratch[i]);
            for (const auto& step : plan.steps) {
                P* y = scratch[step.result];
                for (size_t i = 0; i < plan.stored.size(); ++i)
                    if (plan.stored[i] == step.result)
                        y = rows_to_write<X, P>(stored[i], tile.first, plan.widths[step.result], y);
                set_arguments(step, values, tile);
                step.op->forward(tile, y);
                values[step.result] = y;
            }
            for (size_t i = 0; i < plan.stored.size(); ++i)
                finish_rows<X, P>(stored[i], tile.first, tile.count, plan.widths[plan.stored[i]],
                                  values[plan.stored[i]]);
        }
    });
}

// One thread's way back, tile by tile.
template <typename X>
class TilesBack {
    using P = accumulate_t<X>;

  public:
    // See run_backward.
    TilesBack(const Plan& plan, const BackwardPlan& way, const std::vector<at::Tensor>& inputs,
              const std::vector<at::Tensor>& grads, std::vector<at::Tensor>& to)
        : plan_(plan),
          way_(way),
          inputs_(inputs),
          grads_(grads),
          to_(to),
          scratch_(plan.widths),
          grad_scratch_(plan.widths),
          second_(
              std::vector<int64_t>(kMaxArguments, *std::max_element(plan.widths.begin(), plan.widths.end()))),
          values_(plan.widths.size()),
          gradients_(plan.widths.size()) {
        for (size_t k = 0; k < plan.parameters; ++k) {
            const auto& wanted = to[plan.inputs + k];
            sums_.push_back(wanted.defined() ? at::zeros(wanted.sizes(), wanted.options()) : at::Tensor());
        }
    }

    void run(int64_t first, int64_t count) {
        tile_.first = first;
        tile_.count = count;
        compute_values();
        std::fill(gradients_.begin(), gradients_.end(), nullptr);
        take_gradients();
        for (size_t i = plan_.steps.size(); i-- > 0;)
            if (way_.runs[i]) step_back(plan_.steps[i]);
        for (size_t i = 0; i < plan_.inputs; ++i)
            if (to_[i].defined()) finish_rows<X, P>(to_[i], first, count, plan_.widths[i], gradients_[i]);
    }

    // Parameters' gradients over the tiles so far; undefined where not wanted.
    const std::vector<at::Tensor>& sums() const { return sums_; }

  private:
    void compute_values() {
        for (size_t i = 0; i < plan_.inputs; ++i)
            if (way_.computed[i])
                values_[i] =
                    read_rows<X, P>(inputs_[i], tile_.first, tile_.count, plan_.widths[i], scratch_[i]);
        for (const auto& step : plan_.steps) {
            if (!way_.computed[step.result]) continue;
            set_arguments(step, values_, tile_);
            step.op->forward(tile_, scratch_[step.result]);
            values_[step.result] = scratch_[step.result];
        }
    }

    void take_gradients() {
        for (size_t i = 0; i < plan_.outputs.size(); ++i) {
            const auto value = plan_.outputs[i];
            if (!grads_[i].defined() || !way_.wants_grad[value]) continue;
            const bool only = way_.arrivals[value] == 1;
            const P* rows = read_rows<X, P>(grads_[i], tile_.first, tile_.count, plan_.widths[value],
                                            only ? grad_scratch_[value] : second_[0]);
            if (only)
                gradients_[value] = rows;
            else
                add(value, rows);
        }
    }

    void step_back(const Plan::Step& step) {
        set_arguments(step, values_, tile_);
        RowGradients<P> grad{.y = gradients_[step.result], .x = {}, .parameters = {}};
        for (size_t j = 0; j < step.arguments.size(); ++j) {
            const auto argument = step.arguments[j];
            if (!way_.wants_grad[argument]) continue;
            const bool first = !gradients_[argument] && (j == 0 || argument != step.arguments[0]);
            grad.x[j] = first ? place_of(argument) : second_[j];
        }
        for (size_t k = 0; k < step.op->parameters.size(); ++k)
            if (auto& sum = sums_[step.parameters + k]; sum.defined())
                grad.parameters[k] = sum.template mutable_data_ptr<P>();
        step.op->backward(tile_, grad);
        for (size_t j = 0; j < step.arguments.size(); ++j) {
            if (!grad.x[j]) continue;
            if (grad.x[j] == second_[j])
                add(step.arguments[j], grad.x[j]);
            else
                gradients_[step.arguments[j]] = grad.x[j];
        }
    }

    // Where a value's gradient is summed.
    P* place_of(size_t value) {
        P* place = grad_scratch_[value];
        return value < plan_.inputs ? rows_to_write<X, P>(to_[value], tile_.first, plan_.widths[value], place)
                                    : place;
    }

    void add(size_t value, const P* more) {
        const int64_t size = tile_.count * plan_.widths[value];
        P* sum = place_of(value);
        if (gradients_[value]) {
#pragma omp simd
            for (int64_t j = 0; j < size; ++j) sum[j] += more[j];
        } else {
            std::copy_n(more, size, sum);
        }
        gradients_[value] = sum;
    }

    const Plan& plan_;
    const BackwardPlan& way_;
    const std::vector<at::Tensor>&inputs_, &grads_;
    std::vector<at::Tensor>& to_;
    Scratch<P> scratch_, grad_scratch_;
    Scratch<P> second_;  // further gradients of a step's arguments, before they are added
    std::vector<const P*> values_, gradients_;  // this tile's
    std::vector<at::Tensor> sums_;
    RowTile<P> tile_{};
};

// grads: of the outputs; undefined where none arrives. to: of inputs, then parameters; undefined where not
// wanted.
template <typename X>
void run_backward(const Plan& plan, const BackwardPlan& way, const std::vector<at::Tensor>& inputs,
                  const std::vector<at::Tensor>& grads, std::vector<at::Tensor>& to, int64_t tokens) {
    // Each chunk sums parameters' gradients on its own; the chunks are then added in order, so the result
    // depends on their number alone.
    std::vector<std::vector<at::Tensor>> sums(static_cast<size_t>(num_chunks(tokens, kGrain)));
    parallel_for(tokens, kGrain, [&](int chunk, int64_t begin, int64_t end) {
        TilesBack<X> tiles(plan, way, inputs, grads, to);
        for (int64_t first = begin; first < end; first += kTile)
            tiles.run(first, std::min(kTile, end - first));
        sums[static_cast<size_t>(chunk)] = tiles.sums();
    });
    for (size_t k = 0; k < plan.parameters; ++k) {
        if (!to[plan.inputs + k].defined()) continue;
        for (const auto& own : sums) to[plan.inputs + k].add_(own[k]);
    }
}

struct RowsFunction : torch::autograd::Function<RowsFunction> {
    // tensors: inputs, then the parameters of all steps.
    static variable_list forward(AutogradContext* context, at::TensorList tensors, const PlanPtr& plan) {
        const std::vector<at::Tensor> inputs(tensors.begin(),
                                             tensors.begin() + static_cast<int64_t>(plan->inputs));
        const int64_t tokens = inputs.front().size(0);
        variable_list stored, outputs;
        for (const auto value : plan->stored)
            stored.push_back(at::empty({tokens, plan->widths[value]}, inputs.front().options()));
        const auto dtype = inputs.front().scalar_type();
        dispatch(dtype, "rows", [&](auto type) { run_forward<decltype(type)>(*plan, inputs, stored); });
        // One memory, but a gradient each: these are added up tile by tile.
        for (const auto value : plan->outputs) {
            const auto place = std::find(plan->stored.begin(), plan->stored.end(), value);
            outputs.push_back(stored[static_cast<size_t>(place - plan->stored.begin())].detach());
        }

        std::vector<char> trained;
        for (const auto& tensor : tensors) trained.push_back(tensor.requires_grad());
        const BackwardPlan way(*plan, std::vector<char>(outputs.size(), 1), trained);
        variable_list kept;
        for (size_t i = 0; i < plan->inputs; ++i) kept.push_back(way.computed[i] ? inputs[i] : at::Tensor());
        context->save_for_backward(kept);
        context->set_materialize_grads(false);  // an output that nobody used costs nothing
        context->saved_data["plan"] = c10::IValue::make_capsule(plan);
        return outputs;
    }

    static variable_list backward(AutogradContext* context, variable_list grads) {
        const auto plan = c10::static_intrusive_pointer_cast<Plan>(context->saved_data["plan"].toCapsule());
        const auto inputs = context->get_saved_variables();
        std::vector<char> given, trained;
        at::Tensor like;  // some gradient that arrives
        for (auto& grad : grads) {
            given.push_back(grad.defined());
            if (!grad.defined()) continue;
            grad = grad.contiguous();
            like = grad;
        }
        for (size_t i = 0; i < plan->inputs + plan->parameters; ++i)
            trained.push_back(context->needs_input_grad(i));
        const BackwardPlan way(*plan, given, trained);
        variable_list result(plan->inputs + plan->parameters + 1);  // the last one is the plan's
        if (!like.defined()) return result;
        for (size_t i = 0; i < plan->inputs; ++i)
            if (trained[i] && way.arrivals[i] > 0)
                result[i] = at::empty({like.size(0), plan->widths[i]}, like.options());
        for (size_t s = 0; s < plan->steps.size(); ++s) {
            const auto& step = plan->steps[s];
            for (size_t k = 0; k < step.op->parameters.size(); ++k) {
                const auto& parameter = step.op->parameters[k];
                const size_t at = plan->inputs + step.parameters + k;
                if (trained[at] && way.runs[s])
                    result[at] = at::zeros(parameter.sizes(), parameter.options());
            }
        }
        dispatch(like.scalar_type(), "rows", [&](auto type) {
            run_backward<decltype(type)>(*plan, way, inputs, grads, result, like.size(0));
        });
        return result;
    }
};

}  // namespace

Rows::Value Rows::input(const at::Tensor& x) {
    ETHER_ASSERT(x.dim() == 2);
    if (!nodes_.empty())
        ETHER_ASSERT(tokens() == x.size(0) && nodes_.front().tensor.scalar_type() == x.scalar_type());
    nodes_.push_back({nullptr, {}, x.size(1), x.contiguous()});
    return {static_cast<int>(nodes_.size()) - 1};
}

Rows::Value Rows::apply(std::shared_ptr<const RowOp> op, const std::vector<Value>& arguments) {
    ETHER_ASSERT(!arguments.empty() && arguments.size() <= kMaxArguments);
    ETHER_ASSERT(op->parameters.size() <= kMaxParameters);
    Node node{std::move(op), {}, 0, {}};
    for (const auto argument : arguments) {
        ETHER_ASSERT(width(argument) == width(arguments.front()));
        node.arguments.push_back(argument.index);
    }
    for (const auto& parameter : node.op->parameters)
        ETHER_ASSERT(parameter.scalar_type() == compute_dtype() && parameter.is_contiguous());
    node.width = node.op->width(width(arguments.front()));
    nodes_.push_back(std::move(node));
    return {static_cast<int>(nodes_.size()) - 1};
}

at::ScalarType Rows::compute_dtype() const { return accumulate_dtype(nodes_.front().tensor.scalar_type()); }

std::vector<at::Tensor> Rows::run(const std::vector<Value>& values) const {
    std::vector<char> needed(nodes_.size(), 0);
    for (const auto value : values) needed[static_cast<size_t>(value.index)] = 1;
    for (size_t i = nodes_.size(); i-- > 0;)
        if (needed[i])
            for (const int argument : nodes_[i].arguments) needed[static_cast<size_t>(argument)] = 1;

    auto plan = c10::make_intrusive<Plan>();
    std::vector<size_t> number(nodes_.size());
    std::vector<at::Tensor> tensors;
    auto take = [&](size_t i) {
        number[i] = plan->widths.size();
        plan->widths.push_back(nodes_[i].width);
    };
    for (size_t i = 0; i < nodes_.size(); ++i)
        if (needed[i] && !nodes_[i].op) {
            take(i);
            tensors.push_back(nodes_[i].tensor);
        }
    plan->inputs = tensors.size();
    for (size_t i = 0; i < nodes_.size(); ++i) {
        const auto& node = nodes_[i];
        if (!needed[i] || !node.op) continue;
        Plan::Step step{node.op, {}, 0, plan->parameters};
        for (const int argument : node.arguments)
            step.arguments.push_back(number[static_cast<size_t>(argument)]);
        take(i);
        step.result = number[i];
        tensors.insert(tensors.end(), node.op->parameters.begin(), node.op->parameters.end());
        plan->parameters += node.op->parameters.size();
        plan->steps.push_back(std::move(step));
    }
    // Inputs are handed back as they are.
    std::vector<at::Tensor> result(values.size());
    std::vector<size_t> computed;
    for (size_t i = 0; i < values.size(); ++i) {
        const auto at = static_cast<size_t>(values[i].index);
        if (!nodes_[at].op) {
            result[i] = nodes_[at].tensor;
        } else {
            computed.push_back(i);
            plan->outputs.push_back(number[at]);
            if (std::find(plan->stored.begin(), plan->stored.end(), number[at]) == plan->stored.end())
                plan->stored.push_back(number[at]);
        }
    }
    if (computed.empty()) return result;
    auto outputs = RowsFunction::apply(at::TensorList(tensors), plan);
    for (size_t i = 0; i < computed.size(); ++i) result[computed[i]] = std::move(outputs[i]);
    return result;
}

}  // namespace ether::ops
