#include "ether/methods/bottleneck_module.h"

#include <ATen/Functions.h>

namespace ether::methods {

using at::Tensor;

BottleneckModule BottleneckModule::add(const std::string& name, int64_t size, const Tensor& up_start,
                                       const MethodContext& context) {
    const int64_t width = context.model.shape().hidden_size;
    auto add = [&](const char* part, const Tensor& value) {
        return context.parameters.add(name + "." + part, value);
    };
    return {add("down.weight", normal({size, width}, 0.02, context.random.stream(name))),
            add("down.bias", at::zeros({size})), add("up.weight", up_start),
            add("up.bias", at::zeros({width}))};
}

Tensor BottleneckModule::operator()(const Tensor& x, const std::string& activation) const {
    const auto inner = at::addmm(down_bias, x.to(down.scalar_type()), down.t());
    const auto active = activation == "relu"   ? at::relu(inner)
                        : activation == "gelu" ? at::gelu(inner)
                                               : at::silu(inner);
    return at::addmm(up_bias, active, up.t());
}

Field bottleneck_size_field(int64_t* size) {
    return {
        .name = "bottleneck-size", .value = size, .help = "r, the inner width", .low = 1, .high = 1 << 16};
}

}  // namespace ether::methods
