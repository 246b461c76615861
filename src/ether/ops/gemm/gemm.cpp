#include "ether/ops/gemm/gemm.h"

#include <ATen/ops/addmm.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/ones.h>

#include <algorithm>
#include <chrono>

namespace ether::ops {
namespace {

double seconds_of_a_product(at::ScalarType dtype) {
    using Clock = std::chrono::steady_clock;
    const auto a = at::ones({256, 768}, dtype), b = at::ones({768, 768}, dtype);
    double best = 1e9;
    for (int repeat = 0; repeat < 4; ++repeat) {  // the first one warms up
        const auto start = Clock::now();
        at::mm(a, b);
        best = std::min(best, std::chrono::duration<double>(Clock::now() - start).count());
    }
    return best;
}

// The dtype in which a product of this dtype is computed.
at::ScalarType compute_dtype(at::ScalarType dtype) {
    return dtype == at::kBFloat16 && !bfloat16_gemm_is_faster() ? at::kFloat : dtype;
}

}  // namespace

bool bfloat16_gemm_is_faster() {
    static const bool faster = seconds_of_a_product(at::kBFloat16) < seconds_of_a_product(at::kFloat);
    return faster;
}

at::Tensor gemm_nt(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
    const auto dtype = compute_dtype(x.scalar_type());
    const auto w = weight.to(dtype).t();
    const auto y = bias.defined() ? at::addmm(bias.to(dtype), x.to(dtype), w) : at::mm(x.to(dtype), w);
    return y.to(x.scalar_type());
}

at::Tensor gemm_nn(const at::Tensor& g, const at::Tensor& weight) {
    const auto dtype = compute_dtype(g.scalar_type());
    return at::mm(g.to(dtype), weight.to(dtype)).to(g.scalar_type());
}

at::Tensor gemm_tn(const at::Tensor& g, const at::Tensor& x) {
    const auto dtype = g.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
    return at::mm(g.to(dtype).t(), x.to(dtype));
}

}  // namespace ether::ops
