// AdamW: Adam (Kingma and Ba, arXiv 1412.6980) with decoupled weight decay (Loshchilov and Hutter, arXiv
// 1711.05101), with torch.optim.AdamW's arithmetic. State is kept in float32 beside each parameter; one
// thread, or libtorch's operations on all parameters at once (ops/composed.h).
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <utility>
#include <vector>

namespace ether::train {

struct AdamWOptions {
    double beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8;
};

struct OptimizedParameter {
    std::string name;
    at::Tensor value;          // a leaf; its gradient is read
    double learning_rate = 0;  // times the schedule's factor
    double weight_decay = 0;
};

class AdamW {
  public:
    AdamW(std::vector<OptimizedParameter> parameters, AdamWOptions options = {});

    // One update with the gradients at hand, times `gradient_scale`; a parameter without gradient stays as it
    // is.
    void step(double schedule_factor, double gradient_scale = 1);
    // Square root of the sum of squares of all gradients, in double.
    double gradient_norm() const;

    // State by name: "<parameter>.exp_avg", "<parameter>.exp_avg_sq", and "step". Tensors are the live ones.
    std::vector<std::pair<std::string, at::Tensor>> state() const;
    void load_state(const std::vector<std::pair<std::string, at::Tensor>>& state);

    const std::vector<OptimizedParameter>& parameters() const { return parameters_; }

  private:
    // What a step does to a parameter, by its index.
    struct Step {
        size_t parameter;
        at::Tensor gradient;
        double rate, decay;
    };
    struct Corrections {
        double scale, first, second;  // of gradients, and of both moments for their starting at 0
    };
    void update(const Step& step, const Corrections& corrections) const;
    void update_composed(const std::vector<Step>& steps, const Corrections& corrections) const;

    AdamWOptions options_;
    std::vector<OptimizedParameter> parameters_;
    std::vector<at::Tensor> exp_avg_, exp_avg_sq_;
    std::vector<at::Tensor> changes_;  // of the values in one step, where operations are composed
    at::Tensor step_;                  // (1) int64
};

}  // namespace ether::train
