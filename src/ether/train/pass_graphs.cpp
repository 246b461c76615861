#include "ether/train/pass_graphs.h"

#include <ATen/Functions.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <bit>
#include <chrono>

#include "ether/ops/device.h"

namespace ether::train {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kMostGraphs = 16, kMostShapes = 4096;
// Of a pass's time, after which the device has caught up with the host: it waits where that is most of it.
constexpr double kMostlyWaiting = 0.8;

}  // namespace

std::unique_ptr<PassGraphs> PassGraphs::of(methods::AdaptedModel& model) {
    if (!ops::can_record(model.model().device()) || model.parameters().count() == 0) return nullptr;
    return std::make_unique<PassGraphs>(model);
}

PassGraphs::PassGraphs(methods::AdaptedModel& model) : model_(model) {
    for (const auto& parameter : model.parameters().trained()) trained_.push_back(parameter.value);
    for (const auto& tensor : trained_) off_ |= tensor.scalar_type() != trained_.front().scalar_type();
}

double PassGraphs::run(const nn::Pass& pass, double weight, const Loss& loss) {
    if (off_) return run_by_kernels(pass, loss, nullptr);
    forget_lost_graphs();
    const auto& batch = pass.batch;
    auto& shape = shapes_[{batch.tokens(), batch.size(), batch.max_length, batch.predicted,
                           std::bit_cast<int64_t>(weight)}];
    if (!shape.graph && shape.seen >= 2 && shape.waits_for_host && graphs_ < kMostGraphs)
        record(shape, pass, loss);
    if (!shape.graph) return run_by_kernels(pass, loss, &shape);
    replay(shape, batch);
    return shape.loss.item<double>();
}

double PassGraphs::run_by_kernels(const nn::Pass& pass, const Loss& loss, Shape* shape) {
    bool drew = false;
    auto own = pass;
    own.drew = &drew;
    const auto start = Clock::now();
    const auto share = loss(own);
    share.backward();
    const auto started = Clock::now();
    const double value = share.item<double>();
    if (shape) {
        ++shape->seen;
        // Work of the CPU's own (tests record it) is done when it has been started.
        shape->waits_for_host = share.is_cpu() || started - start > kMostlyWaiting * (Clock::now() - start);
        off_ |= drew;
    }
    return value;
}

void PassGraphs::record(Shape& shape, const nn::Pass& pass, const Loss& loss) {
    const auto device = trained_.front().device();
    // A graph keeps what a pass needs, beside what other passes need.
    if (device.is_cuda() && ops::free_memory(device) < ops::peak_memory(device)) return;
    shape.batch = pass.batch;
    for (auto* tensor : shape.batch.tensors()) *tensor = tensor->clone();
    // What the last pass bound keeps nodes of autograd, and those the stream that they were made on: neither
    // may the recording meet nodes of other streams, nor other passes the recording's.
    const auto let_go = [&] {
        const at::NoGradGuard no_grad;
        model_.bind({.batch = shape.batch});
    };
    let_go();
    shape.graph = ops::record(device, [this, &shape, loss] {
        const auto share = loss({.batch = shape.batch, .training = true});
        std::vector<at::Tensor> parts;
        shape.has_gradient.clear();
        for (const auto& gradient : torch::autograd::grad({share}, trained_, {}, /*retain_graph=*/false,
                                                          /*create_graph=*/false, /*allow_unused=*/true)) {
            shape.has_gradient.push_back(gradient.defined());
            if (gradient.defined()) parts.push_back(gradient.reshape(-1));
        }
        shape.loss = share.detach();
        shape.gradient = at::cat(parts);
    });
    let_go();
    if (shape.graph && !sum_.defined()) lay_out(shape.has_gradient);
    for (size_t i = 0; i < trained_.size() && shape.graph; ++i)
        if (pieces_[i].defined() != (shape.has_gradient[i] != 0)) shape.graph.reset();
    off_ |= !shape.graph;
    graphs_ += shape.graph != nullptr;
}

void PassGraphs::lay_out(const std::vector<char>& has_gradient) {
    int64_t total = 0;
    for (size_t i = 0; i < trained_.size(); ++i) total += has_gradient[i] ? trained_[i].numel() : 0;
    sum_ = at::empty({total}, trained_.front().options().requires_grad(false));
    int64_t begin = 0;
    for (size_t i = 0; i < trained_.size(); ++i) {
        pieces_.emplace_back();
        if (!has_gradient[i]) continue;
        pieces_.back() = sum_.narrow(0, begin, trained_[i].numel()).view(trained_[i].sizes());
        begin += trained_[i].numel();
    }
}

void PassGraphs::replay(Shape& shape, const data::Batch& batch) {
    auto given = batch;
    const auto from = given.tensors(), to = shape.batch.tensors();
    for (size_t i = 0; i < to.size(); ++i) to[i]->copy_(*from[i]);
    shape.graph->replay();
    bool adds = true;
    for (size_t i = 0; i < trained_.size(); ++i)
        adds &= !pieces_[i].defined() || trained_[i].grad().is_same(pieces_[i]);
    if (adds) {
        sum_.add_(shape.gradient);
        return;
    }
    sum_.copy_(shape.gradient);
    for (size_t i = 0; i < trained_.size(); ++i) {
        if (!pieces_[i].defined()) continue;
        auto& grad = trained_[i].mutable_grad();
        if (grad.defined()) pieces_[i].add_(grad);  // of a micro-batch that was run by kernels
        grad = pieces_[i];
    }
}

void PassGraphs::forget_lost_graphs() {
    const bool lost = graphs_ > 0 && std::any_of(shapes_.begin(), shapes_.end(), [](const auto& entry) {
                          return entry.second.graph && !entry.second.graph->intact();
                      });
    if (!lost && shapes_.size() < kMostShapes) return;
    std::erase_if(shapes_, [&](const auto& entry) { return lost || !entry.second.graph; });
    if (lost) graphs_ = 0;
}

}  // namespace ether::train
