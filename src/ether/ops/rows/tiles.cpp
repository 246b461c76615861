#include "ether/ops/rows/tiles.h"

#include <ATen/ops/zeros.h>

#include <algorithm>

#include "ether/core/parallel.h"
#include "ether/ops/dispatch.h"
#include "ether/ops/isa.h"
#include "ether/ops/vector.h"

namespace ether::ops {
namespace {

constexpr int64_t kGrain = 16;  // tokens below which another thread costs more than it saves
constexpr int64_t kTile = 8;    // tokens: a handful of rows of a wide layer stay in a core's second cache

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
void forward(const Plan& plan, const std::vector<at::Tensor>& inputs, std::vector<at::Tensor>& stored) {
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
    // See tiles_backward. sums_there: parameters' gradients are summed where they are wanted.
    TilesBack(const Plan& plan, const BackwardPlan& way, const std::vector<at::Tensor>& inputs,
              const std::vector<at::Tensor>& grads, std::vector<at::Tensor>& to, bool sums_there)
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
            const bool own = wanted.defined() && !sums_there;
            sums_.push_back(own ? at::zeros(wanted.sizes(), wanted.options()) : wanted);
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

template <typename X>
void backward(const Plan& plan, const BackwardPlan& way, const std::vector<at::Tensor>& inputs,
              const std::vector<at::Tensor>& grads, std::vector<at::Tensor>& to, int64_t tokens) {
    // Each chunk sums parameters' gradients on its own, the first one in place; the others are then added in
    // order, so the result depends on their number alone.
    std::vector<std::vector<at::Tensor>> sums(static_cast<size_t>(num_chunks(tokens, kGrain)));
    parallel_for(tokens, kGrain, [&](int chunk, int64_t begin, int64_t end) {
        TilesBack<X> tiles(plan, way, inputs, grads, to, chunk == 0);
        for (int64_t first = begin; first < end; first += kTile)
            tiles.run(first, std::min(kTile, end - first));
        sums[static_cast<size_t>(chunk)] = tiles.sums();
    });
    for (size_t k = 0; k < plan.parameters; ++k) {
        if (!to[plan.inputs + k].defined()) continue;
        for (size_t chunk = 1; chunk < sums.size(); ++chunk) to[plan.inputs + k].add_(sums[chunk][k]);
    }
}

}  // namespace

void tiles_forward(const Plan& plan, const std::vector<at::Tensor>& inputs, std::vector<at::Tensor>& stored) {
    dispatch(inputs.front().scalar_type(), "rows",
             [&](auto type) { forward<decltype(type)>(plan, inputs, stored); });
}

void tiles_backward(const Plan& plan, const BackwardPlan& way, const std::vector<at::Tensor>& inputs,
                    const std::vector<at::Tensor>& grads, std::vector<at::Tensor>& to, int64_t tokens) {
    const auto given =
        std::find_if(grads.begin(), grads.end(), [](const auto& grad) { return grad.defined(); });
    dispatch(given->scalar_type(), "rows",
             [&](auto type) { backward<decltype(type)>(plan, way, inputs, grads, to, tokens); });
}

}  // namespace ether::ops
