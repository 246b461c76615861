#include <type_traits>

#include "ether/core/error.h"
#include "ether/ops/isa.h"
#include "ether/ops/rank1/kernel.h"
#include "ether/ops/vector.h"

namespace ether::ops {
namespace {

// One block of one token: `size` values of x, `room` of them to the end of its row, and T vectors a side that
// lie `stride` apart. The sums of all terms run in one loop, since a single sum waits for itself.
template <int T, int bytes, typename P>
ETHER_INLINE void forward_block(Isa<bytes> isa, const P* coefficients, const P* left, const P* right,
                                int64_t stride, const P* x, P* y, int64_t size, int64_t room) {
    Vector<P, bytes> sums[T] = {};
    for_vectors<P>(isa, size, room, [&](int64_t j, const auto& lanes) {
        const auto xj = load<P>(x + j, lanes);
        for (int k = 0; k < T; ++k) sums[k] += xj * load<P>(right + k * stride + j, lanes);
    });
    P weights[T];
    for (int k = 0; k < T; ++k) weights[k] = coefficients[k] * sum_of<P>(sums[k]);
    for_vectors<P>(isa, size, room, [&](int64_t j, const auto& lanes) {
        auto value = load<P>(x + j, lanes);
        for (int k = 0; k < T; ++k) value += weights[k] * load<P>(left + k * stride + j, lanes);
        store<P>(y + j, value, lanes);
    });
}

// grad_x = g + sum_k c_k right_k (left_k . g); the vectors' gradients are added to the sums, if given.
template <int T, int bytes, typename P>
ETHER_INLINE void backward_block(Isa<bytes> isa, const P* coefficients, const P* left, const P* right,
                                 int64_t stride, const P* x, const P* g, P* grad_x, P* sum_left, P* sum_right,
                                 int64_t size, int64_t room) {
    const bool sums = sum_left || sum_right;
    Vector<P, bytes> of_g[T] = {}, of_x[T] = {};
    for_vectors<P>(isa, size, room, [&](int64_t j, const auto& lanes) {
        const auto gj = load<P>(g + j, lanes);
        for (int k = 0; k < T; ++k) of_g[k] += gj * load<P>(left + k * stride + j, lanes);
        if (!sums) return;
        const auto xj = load<P>(x + j, lanes);
        for (int k = 0; k < T; ++k) of_x[k] += xj * load<P>(right + k * stride + j, lanes);
    });
    P to_x[T], to_left[T];
    for (int k = 0; k < T; ++k) {
        to_x[k] = coefficients[k] * sum_of<P>(of_g[k]);
        to_left[k] = coefficients[k] * sum_of<P>(of_x[k]);
    }
    for_vectors<P>(isa, size, room, [&](int64_t j, const auto& lanes) {
        const auto gj = load<P>(g + j, lanes);
        if (grad_x) {
            auto value = gj;
            for (int k = 0; k < T; ++k) value += to_x[k] * load<P>(right + k * stride + j, lanes);
            store<P>(grad_x + j, value, lanes);
        }
        auto add = [&](P* sum, const P& factor, const auto& vector) {
            if (sum) store<P>(sum, load<P>(sum, lanes) + factor * vector, lanes);
        };
        if (!sums) return;
        const auto xj = load<P>(x + j, lanes);
        for (int k = 0; k < T; ++k) {
            add(sum_left ? sum_left + k * stride + j : nullptr, to_left[k], gj);
            add(sum_right ? sum_right + k * stride + j : nullptr, to_x[k], xj);
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

template <typename P>
void rank1_forward(const Rank1View<P>& form, const P* x, P* y, int64_t first, int64_t count) {
    const int64_t width = form.width(), size = form.size;
    with_terms(form.terms, [&](auto terms) {
        for_best_isa([&](auto isa) {
            for (int64_t t = 0; t < count; ++t)
                for (int64_t offset = 0; offset < width; offset += size) {
                    const int64_t entry = form.offset(first + t) + offset, at = t * width + offset;
                    forward_block<terms>(isa, form.coefficients, form.left + entry, form.right + entry, width,
                                         x + at, y + at, size, width - offset);
                }
        });
    });
}

template <typename P>
void rank1_backward(const Rank1View<P>& form, const P* x, const P* grad_y, P* grad_x, P* grad_left,
                    P* grad_right, int64_t first, int64_t count) {
    const int64_t width = form.width(), size = form.size;
    const auto shifted = [](auto* pointer, int64_t by) { return pointer ? pointer + by : nullptr; };
    with_terms(form.terms, [&](auto terms) {
        for_best_isa([&](auto isa) {
            for (int64_t t = 0; t < count; ++t)
                for (int64_t offset = 0; offset < width; offset += size) {
                    const int64_t entry = form.offset(first + t) + offset, at = t * width + offset;
                    backward_block<terms>(isa, form.coefficients, form.left + entry, form.right + entry,
                                          width, shifted(x, at), grad_y + at, shifted(grad_x, at),
                                          shifted(grad_left, entry), shifted(grad_right, entry), size,
                                          width - offset);
                }
        });
    });
}

#define ETHER_INSTANTIATE(P)                                                             \
    template void rank1_forward<P>(const Rank1View<P>&, const P*, P*, int64_t, int64_t); \
    template void rank1_backward<P>(const Rank1View<P>&, const P*, const P*, P*, P*, P*, int64_t, int64_t);
ETHER_INSTANTIATE(float)
ETHER_INSTANTIATE(double)
#undef ETHER_INSTANTIATE

}  // namespace ether::ops
