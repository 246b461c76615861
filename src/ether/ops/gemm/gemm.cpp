#include "ether/ops/gemm/gemm.h"

#include <ATen/core/dispatch/Dispatcher.h>
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

// oneDNN's product, x (T, in) times w (out, in) transposed, where w may be any strided view: libtorch has it
// as an operator of its compiler's back end. On Zen 4 it does 108-115 GFLOP/s a core where at::mm (MKL) does
// 95-104. Null where this libtorch lacks it.
using LinearPointwise = at::Tensor(const at::Tensor& x, const at::Tensor& weight,
                                   const std::optional<at::Tensor>& bias, std::string_view attr,
                                   c10::List<std::optional<at::Scalar>> scalars,
                                   std::optional<std::string_view> algorithm);
const c10::TypedOperatorHandle<LinearPointwise>* onednn_linear() {
    static const auto found = [] {
        const auto schema = c10::Dispatcher::singleton().findSchema({"mkldnn::_linear_pointwise", ""});
        return schema ? std::optional(schema->typed<LinearPointwise>()) : std::nullopt;
    }();
    return found ? &*found : nullptr;
}

// A primitive is made for every new shape, which costs more than a small product takes.
constexpr int64_t kSmallProduct = int64_t{1} << 20;

// x (T, in) times w (out, in) transposed, all of one dtype.
at::Tensor product(const at::Tensor& x, const at::Tensor& w, const at::Tensor& bias) {
    const bool suits = x.scalar_type() != at::kDouble && x.numel() * w.size(0) > kSmallProduct;
    if (const auto* onednn = onednn_linear(); onednn && suits)
        return onednn->call(x, w, bias.defined() ? std::optional(bias) : std::nullopt, "none",
                            c10::List<std::optional<at::Scalar>>(), "");
    return bias.defined() ? at::addmm(bias, x, w.t()) : at::mm(x, w.t());
}

}  // namespace

bool bfloat16_gemm_is_faster() {
    static const bool faster = seconds_of_a_product(at::kBFloat16) < seconds_of_a_product(at::kFloat);
    return faster;
}

at::Tensor gemm_nt(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
    const auto dtype = compute_dtype(x.scalar_type());
    const auto b = bias.defined() ? bias.to(dtype) : bias;
    return product(x.to(dtype), weight.to(dtype), b).to(x.scalar_type());
}

at::Tensor gemm_nn(const at::Tensor& g, const at::Tensor& weight) {
    const auto dtype = compute_dtype(g.scalar_type());
    return product(g.to(dtype), weight.to(dtype).t(), {}).to(g.scalar_type());
}

at::Tensor gemm_tn(const at::Tensor& g, const at::Tensor& x) {
    const auto dtype = g.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
    return at::mm(g.to(dtype).t(), x.to(dtype));
}

}  // namespace ether::ops
