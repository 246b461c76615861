#include "ether/methods/method.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/randperm.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "ether/core/error.h"
#include "ether/ops/dispatch.h"

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

at::Tensor random_places(int64_t entries, int64_t count, int64_t seed) {
    const auto generator = at::make_generator<at::CPUGeneratorImpl>(static_cast<uint64_t>(seed));
    return at::randperm(entries, generator, at::kLong).narrow(0, 0, count).clone();
}

at::Tensor row_norms(const at::Tensor& weight) {
    return at::linalg_vector_norm(weight.detach(), 2, {1}, false,
                                  ops::accumulate_dtype(weight.scalar_type()));
}

Field rank_field(int64_t* rank, const char* help, const char* key) {
    return {.name = "rank", .value = rank, .help = help, .low = 1, .high = 1 << 16, .key = key};
}

Field alpha_field(double* alpha, const char* key, const char* help) {
    return {.name = "alpha", .value = alpha, .help = help, .low = kLeastScale, .high = 1e6, .key = key};
}

Field rslora_field(bool* rslora) {
    return {
        .name = "rslora", .value = rslora, .help = "scale by alpha / sqrt(r) instead", .key = "use_rslora"};
}

Field dropout_field(double* dropout, const char* key) {
    return {.name = "dropout",
            .value = dropout,
            .help = "dropout of a layer's input, in the low-rank branch only",
            .low = 0,
            .high = 0.99,
            .key = key};
}

double lora_scale(double alpha, int64_t rank, bool rslora) {
    const auto r = static_cast<double>(rank);
    return alpha / (rslora ? std::sqrt(r) : r);
}

void check_counts(const MethodContext& context, bool idle, const char* option, const char* where) {
    if (idle && !context.loading)
        fail(ErrorKind::usage, "{}: counts with {} alone; add that, or leave it out", option, where);
}

int64_t divided(const nn::Site& site, const char* axis, int64_t width, const char* option, int64_t count) {
    if (width % count != 0)
        fail(ErrorKind::usage,
             "--{}: {} does not divide the {} width {} of {}; choose a divisor, or leave that layer out of "
             "--targets",
             option, count, axis, width, site.name());
    return width / count;
}

int64_t common_divisor(const std::vector<nn::Site*>& sites, int64_t most) {
    int64_t all = 0;
    for (const nn::Site* site : sites) all = std::gcd(all, std::gcd(site->linear.in(), site->linear.out()));
    int64_t divisor = std::max<int64_t>(1, std::min(most, all));
    while (all % divisor != 0) --divisor;
    return divisor;
}

void train_copy(nn::Model& model, nn::ParameterStore& parameters, const std::string& tensor,
                const std::string& name, nn::ParameterGroup group) {
    const auto& base = *model.tensors().at(tensor).front();
    for (const auto& other : parameters.all())
        if (other.value.is_same(base))
            fail(ErrorKind::usage, "\"{}\" would be trained by two methods; leave one of them out", tensor);
    const auto copy = base.detach().to(at::kFloat, false, true);
    model.replace(tensor, parameters.add(name, copy, group));
}

}  // namespace ether::methods
