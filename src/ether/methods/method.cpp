#include "ether/methods/method.h"

#include <ATen/ops/empty.h>

namespace ether::methods {

at::Tensor uniform(at::IntArrayRef shape, double bound, const Random& random) {
    auto values = at::empty(shape, at::kFloat);
    float* out = values.mutable_data_ptr<float>();
    for (int64_t i = 0; i < values.numel(); ++i)
        out[i] = static_cast<float>(bound * (2 * random.uniform(static_cast<uint64_t>(i)) - 1));
    return values;
}

}  // namespace ether::methods
