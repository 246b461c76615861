#include <c10/util/BFloat16.h>

#include <algorithm>
#include <vector>

#include "ether/core/parallel.h"
#include "ether/ops/rank1/kernel.h"
#include "ether/ops/vector_math.h"

namespace ether::ops {
namespace {

constexpr int64_t kGrain = 16;  // tokens below which another thread costs more than it saves

// accumulator += scale * x
template <typename X, typename P>
void axpy(P scale, const X* x, P* accumulator, int64_t n) {
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) accumulator[j] += scale * static_cast<P>(x[j]);
}

// out = in + sum_k weights[k] * vectors[k], the vectors `stride` apart. One and two terms (ETHER, ETHER+) in
// one pass.
template <typename X, typename P>
void add_terms(const X* in, X* out, const P* weights, const P* vectors, int64_t terms, int64_t stride,
               int64_t n, P* scratch) {
    if (terms == 1) {
        const P w = weights[0];
#pragma omp simd
        for (int64_t j = 0; j < n; ++j) out[j] = static_cast<X>(static_cast<P>(in[j]) + w * vectors[j]);
    } else if (terms == 2) {
        const P w0 = weights[0], w1 = weights[1];
        const P* second = vectors + stride;
#pragma omp simd
        for (int64_t j = 0; j < n; ++j)
            out[j] = static_cast<X>(static_cast<P>(in[j]) + (w0 * vectors[j] + w1 * second[j]));
    } else {
        for (int64_t j = 0; j < n; ++j) scratch[j] = static_cast<P>(in[j]);
        for (int64_t k = 0; k < terms; ++k) axpy(weights[k], vectors + k * stride, scratch, n);
        for (int64_t j = 0; j < n; ++j) out[j] = static_cast<X>(scratch[j]);
    }
}

}  // namespace

template <typename X, typename P>
void rank1_forward(const Rank1View<P>& form, const X* x, X* y, int64_t tokens) {
    const int64_t width = form.width(), size = form.size;
    parallel_for(tokens, kGrain, [&](int, int64_t begin, int64_t end) {
        std::vector<P> weights(static_cast<size_t>(form.terms)), scratch(static_cast<size_t>(size));
        for (int64_t t = begin; t < end; ++t) {
            const int64_t entry = form.offset(t);
            for (int64_t block = 0; block < form.blocks; ++block) {
                const int64_t at = t * width + block * size;
                const P* left = form.left + entry + block * size;
                const P* right = form.right + entry + block * size;
                for (int64_t k = 0; k < form.terms; ++k)
                    weights[static_cast<size_t>(k)] =
                        form.coefficients[k] * dot(x + at, right + k * width, size);
                add_terms(x + at, y + at, weights.data(), left, form.terms, width, size, scratch.data());
            }
        }
    });
}

template <typename X, typename P>
void rank1_backward(const Rank1View<P>& form, const X* x, const X* grad_y, X* grad_x, P* grad_left,
                    P* grad_right, int64_t tokens) {
    const int64_t width = form.width(), size = form.size, total = form.bank * form.entry();
    const bool wants_grad = grad_left || grad_right;
    // Each chunk sums on its own; the chunks are then added in order, so the result depends on their number
    // alone.
    const int chunks = num_chunks(tokens, kGrain);
    std::vector<P> sums(wants_grad ? static_cast<size_t>(2 * total * chunks) : 0, P{0});
    parallel_for(tokens, kGrain, [&](int chunk, int64_t begin, int64_t end) {
        std::vector<P> weights(static_cast<size_t>(form.terms)), scratch(static_cast<size_t>(size));
        P* sum_left = sums.data() + 2 * total * chunk;
        P* sum_right = sum_left + total;
        for (int64_t t = begin; t < end; ++t) {
            const int64_t entry = form.offset(t);
            for (int64_t block = 0; block < form.blocks; ++block) {
                const int64_t at = t * width + block * size, vector = entry + block * size;
                for (int64_t k = 0; k < form.terms; ++k) {
                    const int64_t term = vector + k * width;
                    const P c = form.coefficients[k];
                    weights[static_cast<size_t>(k)] = c * dot(grad_y + at, form.left + term, size);
                    if (!wants_grad) continue;
                    axpy(c * dot(x + at, form.right + term, size), grad_y + at, sum_left + term, size);
                    axpy(weights[static_cast<size_t>(k)], x + at, sum_right + term, size);
                }
                add_terms(grad_y + at, grad_x + at, weights.data(), form.right + vector, form.terms, width,
                          size, scratch.data());
            }
        }
    });
    auto reduce = [&](P* grad, int64_t offset) {
        if (!grad) return;
        std::fill(grad, grad + total, P{0});
        for (int chunk = 0; chunk < chunks; ++chunk)
            axpy(P{1}, sums.data() + 2 * total * chunk + offset, grad, total);
    };
    reduce(grad_left, 0);
    reduce(grad_right, total);
}

#define ETHER_INSTANTIATE(X, P)                                                    \
    template void rank1_forward<X, P>(const Rank1View<P>&, const X*, X*, int64_t); \
    template void rank1_backward<X, P>(const Rank1View<P>&, const X*, const X*, X*, P*, P*, int64_t);
ETHER_INSTANTIATE(float, float)
ETHER_INSTANTIATE(double, double)
ETHER_INSTANTIATE(c10::BFloat16, float)
#undef ETHER_INSTANTIATE

}  // namespace ether::ops
