#include "ether/ops/cross_entropy/gpu.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <numeric>

#include "ether/ops/dispatch.h"
#include "ether/ops/gpu/launcher.h"
#include "ether/ops/gpu/program.h"
#include "ether/ops/rows/row_op.h"

namespace ether::ops {
bool has_gpu_cross_entropy(at::ScalarType dtype, at::Device device) {
    return has_device_code(dtype) && kernels_of(device) != nullptr;
}

at::Tensor gpu_cross_entropy(const at::Tensor& logits, const at::Tensor& targets) {
    constexpr int kThreads = 512;
    const int64_t rows = logits.size(0), classes = logits.size(1);
    const auto losses = at::empty({rows}, logits.options().dtype(accumulate_dtype(logits.scalar_type())));
    if (rows == 0) return losses;
    auto& kernels = *kernels_of(logits.device());
    const auto dtype = logits.scalar_type();
    const int64_t chunk = std::gcd(int64_t{8}, classes);
    const auto kernel =
        kernels.compiled({Kernels::cross_entropy, static_cast<int64_t>(dtype), chunk}, kThreads, 0, [&] {
            return program({dtype, chunk, kThreads, 2 * kThreads / 32}, 5,
                           "cross_entropy((Stored*)a.word[1], (const Index*)a.word[2], (P*)a.word[3], rows, "
                           "(Index)a.word[4], shared);\n");
        });
    kernels.launch(kernel, std::min<int64_t>(rows, int64_t{kernels.processors()} * kernel.blocks),
                   {static_cast<uint64_t>(rows), address(logits), address(targets), address(losses),
                    static_cast<uint64_t>(classes)});
    return losses;
}

}  // namespace ether::ops
