#include <c10/util/BFloat16.h>

#include <algorithm>
#include <type_traits>
#include <vector>

#include "ether/core/error.h"
#include "ether/core/parallel.h"
#include "ether/ops/isa.h"
#include "ether/ops/rank1/kernel.h"
#include "ether/ops/vector.h"

namespace ether::ops {
namespace {

constexpr int64_t kGrain = 16;  // tokens below which another thread costs more than it saves

// One block of one token: `size` values of x, `room` of them to the end of its row, and T vectors a side that
// lie `stride` apart. The sums of all terms run in one loop, since a single sum waits for itself.
template <int T, typename X, typename P>
ETHER_INLINE void forward_block(const P* coefficients, const P* left, const P* right, int64_t stride,
                                const X* x, X* y, int64_t size, int64_t room) {
    Vector<P> sums[T] = {};
    for_vectors<P>(size, room, [&](int64_t j, const auto& lanes) {
        const auto xj = load<P>(x + j, lanes);
        for (int k = 0; k < T; ++k) sums[k] += xj * load<P>(right + k * stride + j, lanes);
    });
    P weights[T];
    for (int k = 0; k < T; ++k) weights[k] = coefficients[k] * sum_of<P>(sums[k]);
    for_vectors<P>(size, room, [&](int64_t j, const auto& lanes) {
        auto value = load<P>(x + j, lanes);
        for (int k = 0; k < T; ++k) value += weights[k] * load<P>(left + k * stride + j, lanes);
        store<P>(y + j, value, lanes);
    });
}

// grad_x = g + sum_k c_k right_k (left_k . g); the vectors' gradients are added to the sums, if given.
template <int T, typename X, typename P>
ETHER_INLINE void backward_block(const P* coefficients, const P* left, const P* right, int64_t stride,
                                 const X* x, const X* g, X* grad_x, P* sum_left, P* sum_right, int64_t size,
                                 int64_t room) {
    Vector<P> of_g[T] = {}, of_x[T] = {};
    for_vectors<P>(size, room, [&](int64_t j, const auto& lanes) {
        const auto gj = load<P>(g + j, lanes), xj = load<P>(x + j, lanes);
        for (int k = 0; k < T; ++k) {
            of_g[k] += gj * load<P>(left + k * stride + j, lanes);
            of_x[k] += xj * load<P>(right + k * stride + j, lanes);
        }
    });
    P to_x[T], to_left[T];
    for (int k = 0; k < T; ++k) {
        to_x[k] = coefficients[k] * sum_of<P>(of_g[k]);
        to_left[k] = coefficients[k] * sum_of<P>(of_x[k]);
    }
    for_vectors<P>(size, room, [&](int64_t j, const auto& lanes) {
        const auto gj = load<P>(g + j, lanes);
        auto value = gj;
        for (int k = 0; k < T; ++k) value += to_x[k] * load<P>(right + k * stride + j, lanes);
        store<P>(grad_x + j, value, lanes);
        if (!sum_left) return;
        const auto xj = load<P>(x + j, lanes);
        for (int k = 0; k < T; ++k) {
            P *to_l = sum_left + k * stride + j, *to_r = sum_right + k * stride + j;
            store<P>(to_l, load<P>(to_l, lanes) + to_left[k] * gj, lanes);
            store<P>(to_r, load<P>(to_r, lanes) + to_x[k] * xj, lanes);
        }
    });
}

// Calls body(std::integral_constant<int, terms>): what methods use, ETHER one term and ETHER+ two.
template <typename Body>
void with_terms(int64_t terms, Body&& body) {
    switch (terms) {
        case 1:
            return body(std::integral_constant<int, 1>());
        case 2:
            return body(std::integral_constant<int, 2>());
        case 3:
            return body(std::integral_constant<int, 3>());
        case 4:
            return body(std::integral_constant<int, 4>());
        default:
            ETHER_ASSERT(false);
    }
}

}  // namespace

template <typename X, typename P>
void rank1_forward(const Rank1View<P>& form, const X* x, X* y, int64_t tokens) {
    const int64_t width = form.width(), size = form.size;
    with_terms(form.terms, [&](auto terms) {
        parallel_for(tokens, kGrain, [&](int, int64_t begin, int64_t end) {
            for_best_isa([&] {
                for (int64_t t = begin; t < end; ++t)
                    for (int64_t offset = 0; offset < width; offset += size) {
                        const int64_t entry = form.offset(t) + offset, at = t * width + offset;
                        forward_block<terms>(form.coefficients, form.left + entry, form.right + entry, width,
                                             x + at, y + at, size, width - offset);
                    }
            });
        });
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
    with_terms(form.terms, [&](auto terms) {
        parallel_for(tokens, kGrain, [&](int chunk, int64_t begin, int64_t end) {
            P* sum_left = wants_grad ? sums.data() + 2 * total * chunk : nullptr;
            P* sum_right = wants_grad ? sum_left + total : nullptr;
            for_best_isa([&] {
                for (int64_t t = begin; t < end; ++t)
                    for (int64_t offset = 0; offset < width; offset += size) {
                        const int64_t entry = form.offset(t) + offset, at = t * width + offset;
                        backward_block<terms>(form.coefficients, form.left + entry, form.right + entry, width,
                                              x + at, grad_y + at, grad_x + at,
                                              sum_left ? sum_left + entry : nullptr,
                                              sum_left ? sum_right + entry : nullptr, size, width - offset);
                    }
            });
        });
    });
    auto reduce = [&](P* grad, int64_t offset) {
        if (!grad) return;
        std::fill(grad, grad + total, P{0});
        for (int chunk = 0; chunk < chunks; ++chunk) {
            const P* part = sums.data() + 2 * total * chunk + offset;
#pragma omp simd
            for (int64_t j = 0; j < total; ++j) grad[j] += part[j];
        }
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
