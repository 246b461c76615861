#include "ether/ops/gemm/gemm.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "ether/ops/gemm/panels.h"

namespace ether::ops {
namespace {

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

// By panels, or undefined where such a product is better left to a library.
template <typename T>
at::Tensor by_panels(const at::Tensor& x, const at::Tensor& w, const at::Tensor& bias) {
    const int64_t rows = x.size(0), in = x.size(1), out = w.size(0);
    const auto order = w.stride(1) == 1 ? WeightOrder::kOutIn : WeightOrder::kInOut;
    const int64_t w_row = w.stride(order == WeightOrder::kOutIn ? 0 : 1);
    const bool by_rows = x.stride(1) == 1 && x.stride(0) * sizeof(T) % 4 == 0 &&
                         w.stride(order == WeightOrder::kOutIn ? 1 : 0) == 1 && w.size(1) == in &&
                         (!bias.defined() || (bias.is_contiguous() && bias.numel() == out));
    if (!by_rows || !has_panel_product<T>(rows, out, in, order)) return {};
    auto y = at::empty({rows, out}, x.options());
    panel_product<T>(rows, out, in, {x.const_data_ptr<T>(), x.stride(0)}, {w.const_data_ptr<T>(), w_row},
                     order, bias.defined() ? bias.const_data_ptr<T>() : nullptr, y.mutable_data_ptr<T>());
    return y;
}

// x (T, in) times w (out, in) transposed, all of one dtype.
at::Tensor product(const at::Tensor& x, const at::Tensor& w, const at::Tensor& bias) {
    if (x.is_cpu()) {
        const auto y = x.scalar_type() == at::kFloat      ? by_panels<float>(x, w, bias)
                       : x.scalar_type() == at::kBFloat16 ? by_panels<c10::BFloat16>(x, w, bias)
                                                          : at::Tensor();
        if (y.defined()) return y;
    }
    const bool suits = x.is_cpu() && x.scalar_type() != at::kDouble && x.numel() * w.size(0) > kSmallProduct;
    const at::AutoDispatchBelowAutograd guard;  // which would box the arguments for nothing
    if (const auto* onednn = onednn_linear(); onednn && suits)
        return onednn->call(x, w, bias.defined() ? std::optional(bias) : std::nullopt, "none",
                            c10::List<std::optional<at::Scalar>>(), "");
    return bias.defined() ? at::addmm(bias, x, w.t()) : at::mm(x, w.t());
}

// Whether this machine multiplies bfloat16 faster than float32, by what its processor has, as measured: tiles
// (AMX), or AMD's dot products (Zen 4: twice float32's rate). Intel's dot products without tiles take twice
// float32's time. Not by timing, which another program can disturb: a run that is resumed must choose as it
// did before.
bool bfloat16_gemm_is_faster() {
#if defined(__x86_64__)
    static const bool faster = [] {
        unsigned a = 0, b = 0, c = 0, d = 0;
        const bool tiles = __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 22 & 1);        // AMX-BF16
        const bool dot_products = __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 5 & 1);  // AVX512-BF16
        return tiles || (dot_products && __builtin_cpu_is("amd"));
    }();
    return faster;
#else
    return false;
#endif
}

}  // namespace

at::ScalarType product_dtype(at::ScalarType dtype, at::Device device) {
    return device.is_cpu() && dtype == at::kBFloat16 && !bfloat16_gemm_is_faster() ? at::kFloat : dtype;
}

at::Tensor gemm_nt(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
    const auto dtype = product_dtype(x.scalar_type(), x.device());
    const auto b = bias.defined() ? bias.to(dtype) : bias;
    return product(x.to(dtype), weight.to(dtype), b).to(x.scalar_type());
}

at::Tensor gemm_nn(const at::Tensor& g, const at::Tensor& weight) {
    const auto dtype = product_dtype(g.scalar_type(), g.device());
    return product(g.to(dtype), weight.to(dtype).t(), {}).to(g.scalar_type());
}

at::Tensor gemm_tn(const at::Tensor& g, const at::Tensor& x) {
    const auto dtype = g.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
    return at::mm(g.to(dtype).t(), x.to(dtype));
}

}  // namespace ether::ops
