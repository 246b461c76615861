#include "ether/methods/prefix_vectors.h"

#include <ATen/Functions.h>

namespace ether::methods {

using at::Tensor;

PrefixVectors::PrefixVectors(int64_t length, int64_t projection, const MethodContext& context)
    : length_(length), width_(context.model.shape().kv_heads * context.model.shape().head_dim) {
    const auto& shape = context.model.shape();
    auto add = [&](const std::string& name, const Tensor& value, bool saved = true) {
        return context.parameters.add(name, value, nn::ParameterGroup::adapter, true, saved);
    };
    if (projection == 0 || context.loading) {
        vectors_ = add("prefix", normal({shape.layers, 2, length, width_}, 0.02, context.random));
        return;
    }
    const int64_t d = shape.hidden_size, out = 2 * shape.layers * width_;
    network_ = {add("prefix.embedding", normal({length, d}, 1, context.random.stream("embedding")), false),
                add("prefix.projection.0.weight",
                    kaiming_uniform({projection, d}, context.random.stream("0")), false),
                add("prefix.projection.0.bias", at::zeros({projection}), false),
                add("prefix.projection.1.weight",
                    kaiming_uniform({out, projection}, context.random.stream("1")), false),
                add("prefix.projection.1.bias", at::zeros({out}), false)};
}

Tensor PrefixVectors::value() const {
    if (vectors_.defined()) return vectors_;
    const auto inner = at::addmm(network_.bias, network_.embedding, network_.weight.t()).tanh();
    return at::addmm(network_.out_bias, inner, network_.out_weight.t())
        .view({length_, -1, 2, width_})
        .permute({1, 2, 0, 3})
        .contiguous();
}

void PrefixVectors::to_tensors(io::NamedTensors& tensors) const {
    if (!vectors_.defined()) tensors.emplace_back("prefix", value().detach());
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
