// Row-major products of small tiles in the calling thread, for kernels; torch-free (the BLAS that libtorch
// carries).
#pragma once

#include <cstdint>

namespace ether::ops {

// c (m, n) = alpha * op(a) op(b) + beta * c, where op(a) is (m, k) and op(b) is (k, n); leading dimensions in
// values.
void tile_gemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, float alpha,
               const float* a, int64_t lda, const float* b, int64_t ldb, float beta, float* c, int64_t ldc);
void tile_gemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, double alpha,
               const double* a, int64_t lda, const double* b, int64_t ldb, double beta, double* c,
               int64_t ldc);

}  // namespace ether::ops
