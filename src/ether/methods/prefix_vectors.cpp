#include "ether/methods/prefix_vectors.h"

#include <ATen/Functions.h>

namespace ether::methods {

using at::Tensor;

PrefixVectors::PrefixVectors(std::string name, int64_t length, int64_t projection,
                             const MethodContext& context)
    : name_(std::move(name)),
      length_(length),
      width_(context.model.shape().kv_heads * context.model.shape().head_dim) {
    const auto& shape = context.model.shape();
    auto add = [&](const std::string& part, const Tensor& value, bool saved = true) {
        return context.parameters.add(name_ + part, value, nn::ParameterGroup::adapter, true, saved);
    };
    const int64_t d = shape.hidden_size, row = 2 * shape.layers * width_;
    if (projection == 0 || context.loading) {
        context.parameters.check_room(length * row, name_);
        vectors_ = add("", normal({length, row}, 0.02, context.random));
        return;
    }
    network_ = {
        add(".embedding", normal({length, d}, 1, context.random.stream("embedding")), false),
        add(".projection.0.weight", kaiming_uniform({projection, d}, context.random.stream("0")), false),
        add(".projection.0.bias", at::zeros({projection}), false),
        add(".projection.1.weight", kaiming_uniform({row, projection}, context.random.stream("1")), false),
        add(".projection.1.bias", at::zeros({row}), false)};
}

Tensor PrefixVectors::rows() const {
    if (vectors_.defined()) return vectors_;
    const auto inner = at::addmm(network_.bias, network_.embedding, network_.weight.t()).tanh();
    return at::addmm(network_.out_bias, inner, network_.out_weight.t());
}

Tensor PrefixVectors::value() const {
    return rows().view({length_, -1, 2, width_}).permute({1, 2, 0, 3}).contiguous();
}

void PrefixVectors::to_tensors(io::NamedTensors& tensors) const {
    if (!vectors_.defined()) tensors.emplace_back(name_, rows().detach());
}

Field prefix_length_field(int64_t* length) {
    return {.name = "prefix-length",
            .value = length,
            .help = "l, vectors before each layer's own",
            .low = 1,
            .high = 1 << 16};
}

Field projection_field(int64_t* projection) {
    return {.name = "projection",
            .value = projection,
            .help = "m, inner width of a network that makes them in training; 0: they are trained themselves",
            .low = 0,
            .high = 1 << 20};
}

}  // namespace ether::methods
