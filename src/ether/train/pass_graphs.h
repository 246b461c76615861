// Forward and backward passes as one piece of work for a GPU. A small model's kernels take longer to start
// than to run; where micro-batches of one shape come again and again (texts that are cut to one length), the
// third of them is recorded, and those after it are started as a whole. The bits are the same.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "ether/methods/adapted_model.h"
#include "ether/ops/gpu/graph.h"

namespace ether::train {

class PassGraphs {
  public:
    // A pass's share of the loss, differentiable. What it computes on the host must depend on nothing but the
    // batch's shape, and the pass's random numbers.
    using Loss = std::function<at::Tensor(const nn::Pass&)>;

    // Null where the device's work cannot be recorded.
    static std::unique_ptr<PassGraphs> of(methods::AdaptedModel& model);
    explicit PassGraphs(methods::AdaptedModel& model);

    // Adds the loss's gradient to the grads of the model's trained parameters, and returns it. Later calls
    // may come back to `loss`, or repeat what it did. weight: what it divides by.
    double run(const nn::Pass& pass, double weight, const Loss& loss);

    int64_t recorded() const { return graphs_; }  // shapes

  private:
    // What a pass's numbers on the host depend on.
    using Key = std::vector<int64_t>;
    struct Shape {
        int64_t seen = 0;
        bool waits_for_host = false;  // the device, most of the time
        data::Batch batch;            // which the graph reads
        std::unique_ptr<ops::DeviceGraph> graph;
        at::Tensor loss;
        std::vector<char> has_gradient;  // of each trained parameter
        at::Tensor gradient;             // in those, one after the other
    };

    double run_by_kernels(const nn::Pass& pass, const Loss& loss, Shape* shape);
    void record(Shape& shape, const nn::Pass& pass, const Loss& loss);
    void lay_out(const std::vector<char>& has_gradient);
    void replay(Shape& shape, const data::Batch& batch);
    void forget_lost_graphs();

    methods::AdaptedModel& model_;
    std::vector<at::Tensor> trained_;
    std::map<Key, Shape> shapes_;
    int64_t graphs_ = 0;
    bool off_ = false;  // passes are not alike, or something cannot be recorded
    // Gradients of a step so far, and the pieces of it that are the tensors' grads.
    at::Tensor sum_;
    std::vector<at::Tensor> pieces_;
};

}  // namespace ether::train
