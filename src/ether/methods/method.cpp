#include "ether/methods/method.h"

#include <ATen/ops/empty.h>

#include <cmath>

namespace ether::methods {
namespace {

template <typename Draw>
at::Tensor drawn(at::IntArrayRef shape, Draw&& draw) {
    auto values = at::empty(shape, at::kFloat);
    float* out = values.mutable_data_ptr<float>();
    for (int64_t i = 0; i < values.numel(); ++i) out[i] = static_cast<float>(draw(static_cast<uint64_t>(i)));
    return values;
}

}  // namespace

at::Tensor uniform(at::IntArrayRef shape, double bound, const Random& random) {
    return drawn(shape, [&](uint64_t i) { return bound * (2 * random.uniform(i) - 1); });
}

at::Tensor kaiming_uniform(at::IntArrayRef shape, const Random& random) {
    return uniform(shape, 1 / std::sqrt(static_cast<double>(shape.back())), random);
}

at::Tensor normal(at::IntArrayRef shape, double deviation, const Random& random) {
    return drawn(shape, [&](uint64_t i) { return deviation * random.normal(i); });
}

Field rank_field(int64_t* rank, const char* help, const char* key) {
    return {.name = "rank", .value = rank, .help = help, .low = 1, .high = 1 << 16, .key = key};
}

Field dropout_field(double* dropout, const char* key) {
    return {.name = "dropout",
            .value = dropout,
            .help = "dropout of a layer's input, in the low-rank branch only",
            .low = 0,
            .high = 0.99,
            .key = key};
}

}  // namespace ether::methods
