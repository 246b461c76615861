// BottleneckModule: U act(D x + b) + c with a small inner width, as methods insert it into blocks.
#pragma once

#include "ether/methods/method.h"

namespace ether::methods {

struct BottleneckModule {
    at::Tensor down, down_bias, up, up_bias;  // D (r, d), b (r), U (d, r), c (d)

    // Registers "<name>.down.weight" and so on. D starts normal with deviation 0.02; up_start: U's values.
    static BottleneckModule add(const std::string& name, int64_t size, const at::Tensor& up_start,
                                const MethodContext& context);

    // x: (T, d). activation: "relu", "gelu" or "silu". In the module's dtype; differentiable.
    at::Tensor operator()(const at::Tensor& x, const std::string& activation) const;
};

Field bottleneck_size_field(int64_t* size);

}  // namespace ether::methods
