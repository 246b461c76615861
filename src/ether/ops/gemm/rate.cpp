#include "ether/ops/gemm/rate.h"

#include <ATen/Functions.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <memory>

#include "ether/core/parallel.h"
#include "ether/ops/device.h"
#include "ether/ops/gemm/gemm.h"

extern "C" {
size_t cblas_sgemm_pack_get_size(int identifier, int m, int n, int k);
void cblas_sgemm_pack(int layout, int identifier, int transpose, int m, int n, int k, float alpha,
                      const float* source, int ld, float* packed);
void cblas_sgemm_compute(int layout, int transpose_a, int transpose_b, int m, int n, int k, const float* a,
                         int lda, const float* b, int ldb, float beta, float* c, int ldc);
}

namespace ether::ops {
namespace {

using Product = std::function<void()>;
constexpr int kRepeats = 5;
constexpr int kInFlight = 20;  // products on a device between two waits, which a start would else be part of

// MKL's constants (mkl_cblas.h).
constexpr int kRowMajor = 101, kNoTranspose = 111, kTranspose = 112, kPacked = 151, kMatrixB = 162;

double fastest(const Product& product, at::Device device) {
    using Clock = std::chrono::steady_clock;
    const int products = device.is_cpu() ? 1 : kInFlight;
    double best = 1e30;
    for (int repeat = 0; repeat <= kRepeats; ++repeat) {
        wait_for(device);
        const auto start = Clock::now();
        for (int i = 0; i < products; ++i) product();
        wait_for(device);
        if (repeat > 0)
            best = std::min(best, std::chrono::duration<double>(Clock::now() - start).count() / products);
    }
    return best;
}

// The two products of one layer, x W^T and g W, prepared so that calling them does nothing else.
struct Layer {
    Product forward, backward;
};

struct Operands {
    at::Tensor weight;             // (out, in)
    std::vector<at::Tensor> x, g;  // one entry for the whole batch, or one a sequence
};

// Runs part(i) for each part; several parts go to different threads.
Product over_parts(size_t parts, std::function<void(size_t)> part) {
    if (parts == 1) return [part] { part(0); };
    return [parts, part] {
        parallel_for(static_cast<int64_t>(parts), 1, [&](int, int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) part(static_cast<size_t>(i));
        });
    };
}

Layer with_mm(const Operands& operands) {
    std::vector<at::Tensor> y, dx;
    for (size_t i = 0; i < operands.x.size(); ++i) {
        y.push_back(at::empty({operands.x[i].size(0), operands.weight.size(0)}, operands.weight.options()));
        dx.push_back(at::empty_like(operands.x[i]));
    }
    return {
        over_parts(y.size(), [=](size_t i) mutable { at::mm_out(y[i], operands.x[i], operands.weight.t()); }),
        over_parts(y.size(), [=](size_t i) mutable { at::mm_out(dx[i], operands.g[i], operands.weight); })};
}

Layer with_mkl_packed(const Operands& operands) {
    const int out = static_cast<int>(operands.weight.size(0)), in = static_cast<int>(operands.weight.size(1));
    const int rows = static_cast<int>(operands.x[0].size(0));
    auto pack = [&](int transpose, int n, int k) {
        auto packed = at::empty(
            {static_cast<int64_t>(cblas_sgemm_pack_get_size(kMatrixB, rows, n, k) / sizeof(float)) + 64});
        cblas_sgemm_pack(kRowMajor, kMatrixB, transpose, rows, n, k, 1.0F,
                         operands.weight.const_data_ptr<float>(), in, packed.mutable_data_ptr<float>());
        return packed;
    };
    auto product = [rows](const std::vector<at::Tensor>& a, const at::Tensor& packed, int n, int k, int ldb) {
        std::vector<at::Tensor> c;
        for (size_t i = 0; i < a.size(); ++i) c.push_back(at::empty({rows, n}));
        return over_parts(a.size(), [=](size_t i) {
            cblas_sgemm_compute(kRowMajor, kNoTranspose, kPacked, rows, n, k, a[i].const_data_ptr<float>(), k,
                                packed.const_data_ptr<float>(), ldb, 0.0F, c[i].mutable_data_ptr<float>(), n);
        });
    };
    return {product(operands.x, pack(kTranspose, out, in), out, in, in),
            product(operands.g, pack(kNoTranspose, in, out), in, out, in)};
}

Layer with_onednn(const Operands& operands) {
    std::vector<at::Tensor> x, g;
    for (size_t i = 0; i < operands.x.size(); ++i) {
        x.push_back(operands.x[i].to_mkldnn());
        g.push_back(operands.g[i].to_mkldnn());
    }
    const auto weight = operands.weight.to_mkldnn(),
               transposed = operands.weight.t().contiguous().to_mkldnn();
    return {over_parts(x.size(), [=](size_t i) { at::mkldnn_linear(x[i], weight); }),
            over_parts(x.size(), [=](size_t i) { at::mkldnn_linear(g[i], transposed); })};
}

Layer with_own(const Operands& operands) {
    const auto& weight = operands.weight;
    return {over_parts(operands.x.size(), [=, x = operands.x](size_t i) { gemm_nt(x[i], weight); }),
            over_parts(operands.g.size(), [=, g = operands.g](size_t i) { gemm_nn(g[i], weight); })};
}

struct Candidate {
    const char* name;
    Layer (*prepare)(const Operands&);
    bool float_only;
};
constexpr Candidate kCandidates[] = {{"at::mm", with_mm, false},
                                     {"MKL packed", with_mkl_packed, true},
                                     {"oneDNN", with_onednn, false},
                                     {"ether", with_own, false}};

}  // namespace

GemmRate best_gemm_rate(const std::vector<GemmShape>& shapes, int64_t batch, int64_t tokens,
                        at::ScalarType dtype, at::Device device) {
    const at::NoGradGuard no_grad;
    dtype = product_dtype(dtype, device);
    GemmRate best;
    for (const auto& candidate : kCandidates) {
        if (candidate.float_only && dtype != at::kFloat) continue;
        if (!device.is_cpu() && candidate.prepare != with_mm) continue;
        for (const bool whole : {true, false}) {
            if (!whole && (batch == 1 || !device.is_cpu())) continue;
            double seconds = 0, flops = 0;
            for (const auto& shape : shapes) {
                const auto random = [&](int64_t rows, int64_t columns) {
                    return at::randn({rows, columns}, device).to(dtype);
                };
                Operands operands{random(shape.out, shape.in), {}, {}};
                for (int64_t i = 0; i < (whole ? 1 : batch); ++i) {
                    const int64_t rows = whole ? batch * tokens : tokens;
                    operands.x.push_back(random(rows, shape.in));
                    operands.g.push_back(random(rows, shape.out));
                }
                const auto layer = candidate.prepare(operands);
                const auto count = static_cast<double>(shape.count);
                seconds += count * (fastest(layer.forward, device) + fastest(layer.backward, device));
                flops += count * 4.0 * static_cast<double>(batch * tokens * shape.out * shape.in);
            }
            if (flops / seconds > best.flops_per_second)
                best = {std::string(candidate.name) + (whole ? ", whole batch" : ", one sequence a thread"),
                        flops / seconds};
        }
    }
    return best;
}

}  // namespace ether::ops
