// PrefixVectors: keys and values that stand before each layer's own, trained themselves or through a network.
#pragma once

#include "ether/methods/method.h"

namespace ether::methods {

class PrefixVectors {
  public:
    // Registers `name`: of each of l vectors all layers' keys and values in a row, (l, layers * 2 * d_kv), as
    // PEFT holds them; or, where `projection` (a width m) is not 0, l vectors and the two layers of
    // tanh(E A^T + a) B^T + b, which only training knows: files hold what comes out.
    PrefixVectors(std::string name, int64_t length, int64_t projection, const MethodContext& context);

    // (layers, keys and values, l, d_kv), differentiable.
    at::Tensor value() const;
    void to_tensors(io::NamedTensors& tensors) const;

  private:
    struct Network {
        at::Tensor embedding, weight, bias, out_weight, out_bias;
    };

    at::Tensor rows() const;  // (l, layers * 2 * d_kv)

    std::string name_;
    int64_t length_, width_;
    at::Tensor vectors_;  // trained, or
    Network network_;     // what makes them
};

// The two options.
Field prefix_length_field(int64_t* length);
Field projection_field(int64_t* projection);

}  // namespace ether::methods
