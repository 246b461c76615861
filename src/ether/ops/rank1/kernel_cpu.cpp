#include <type_traits>

#include "ether/core/error.h"
#include "ether/ops/isa.h"
#include "ether/ops/rank1/kernel.h"
#include "ether/ops/vector.h"

namespace ether::ops {
namespace {

// What the vectors of one block are, T a side and `stride` apart, with `room` values to the end of its row.
template <typename P>
struct Block {
    const P *coefficients, *left, *right;
    int64_t stride, size, room;
};

// In the functions below R tokens' values of a block, in rows `stride` apart, share each load of its vectors.

// factors[r][k] = c_k (vector_k . row_r). The sums run in one loop, since a single one waits for itself.
template <int T, int R, int bytes, typename P>
ETHER_INLINE void products(Isa<bytes> isa, const Block<P>& block, const P* vectors, const P* rows,
                           P (&factors)[R][T]) {
    Vector<P, bytes> sums[R][T] = {};
    for_vectors<P>(isa, block.size, block.room, [&](int64_t j, const auto& lanes) {
        Vector<P, bytes> vector[T];
        for (int k = 0; k < T; ++k) vector[k] = load<P>(vectors + k * block.stride + j, lanes);
        for (int r = 0; r < R; ++r) {
            const auto row = load<P>(rows + r * block.stride + j, lanes);
            for (int k = 0; k < T; ++k) sums[r][k] += row * vector[k];
        }
    });
    for (int r = 0; r < R; ++r)
        for (int k = 0; k < T; ++k) factors[r][k] = block.coefficients[k] * sum_of<P>(sums[r][k]);
}

// to_r = row_r + sum_k factors[r][k] vector_k
template <int T, int R, int bytes, typename P>
ETHER_INLINE void add_vectors(Isa<bytes> isa, const Block<P>& block, const P* vectors, const P* rows,
                              const P (&factors)[R][T], P* to) {
    for_vectors<P>(isa, block.size, block.room, [&](int64_t j, const auto& lanes) {
        Vector<P, bytes> vector[T];
        for (int k = 0; k < T; ++k) vector[k] = load<P>(vectors + k * block.stride + j, lanes);
        for (int r = 0; r < R; ++r) {
            auto value = load<P>(rows + r * block.stride + j, lanes);
            for (int k = 0; k < T; ++k) value += factors[r][k] * vector[k];
            store<P>(to + r * block.stride + j, value, lanes);
        }
    });
}

// to_k += sum_r factors[r][k] row_r
template <int T, int R, int bytes, typename P>
ETHER_INLINE void add_rows(Isa<bytes> isa, const Block<P>& block, const P* rows, const P (&factors)[R][T],
                           P* to) {
    for_vectors<P>(isa, block.size, block.room, [&](int64_t j, const auto& lanes) {
        Vector<P, bytes> sum[T];
        for (int k = 0; k < T; ++k) sum[k] = load<P>(to + k * block.stride + j, lanes);
        for (int r = 0; r < R; ++r) {
            const auto row = load<P>(rows + r * block.stride + j, lanes);
            for (int k = 0; k < T; ++k) sum[k] += factors[r][k] * row;
        }
        for (int k = 0; k < T; ++k) store<P>(to + k * block.stride + j, sum[k], lanes);
    });
}

template <int T, int R, int bytes, typename P>
ETHER_INLINE void forward_block(Isa<bytes> isa, const Block<P>& block, const P* x, P* y) {
    P of_x[R][T];
    products<T, R>(isa, block, block.right, x, of_x);
    add_vectors<T, R>(isa, block, block.left, x, of_x, y);
}

// grad_x = g + sum_k c_k right_k (left_k . g); the vectors' gradients are added to the sums. What is null is
// not wanted.
template <int T, int R, int bytes, typename P>
ETHER_INLINE void backward_block(Isa<bytes> isa, const Block<P>& block, const P* x, const P* g, P* grad_x,
                                 P* sum_left, P* sum_right) {
    P of_g[R][T];
    products<T, R>(isa, block, block.left, g, of_g);
    if (grad_x) add_vectors<T, R>(isa, block, block.right, g, of_g, grad_x);
    if (sum_right) add_rows<T, R>(isa, block, x, of_g, sum_right);
    if (!sum_left) return;
    P of_x[R][T];
    products<T, R>(isa, block, block.right, x, of_x);
    add_rows<T, R>(isa, block, g, of_x, sum_left);
}

// Tokens that are taken together: their sums and the vectors fit 16 registers.
template <int T>
inline constexpr int kTogether = T <= 2 ? 4 : 2;

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

// Calls body(std::integral_constant<int, R>, where the values of R tokens begin, where those of the vectors
// do, block) for every block of all tokens, several tokens at a time where they share the vectors.
template <int T, typename P, typename Body>
ETHER_INLINE void for_blocks(const Rank1View<P>& form, int64_t first, int64_t count, Body&& body) {
    const int64_t width = form.width();
    int64_t t = 0;
    auto run = [&](auto together) {
        for (; t + together <= count; t += together)
            for (int64_t offset = 0; offset < width; offset += form.size) {
                const int64_t entry = form.offset(first + t) + offset;
                body(together, t * width + offset, entry,
                     Block<P>{form.coefficients, form.left + entry, form.right + entry, width, form.size,
                              width - offset});
            }
    };
    if (!form.rows) run(std::integral_constant<int, kTogether<T>>());
    run(std::integral_constant<int, 1>());
}

}  // namespace

template <typename P>
void rank1_forward(const Rank1View<P>& form, const P* x, P* y, int64_t first, int64_t count) {
    with_terms(form.terms, [&](auto terms) {
        for_best_isa([&](auto isa) {
            for_blocks<terms>(form, first, count,
                              [&](auto together, int64_t at, int64_t, const Block<P>& block) {
                                  forward_block<terms, together>(isa, block, x + at, y + at);
                              });
        });
    });
}

template <typename P>
void rank1_backward(const Rank1View<P>& form, const P* x, const P* grad_y, P* grad_x, P* grad_left,
                    P* grad_right, int64_t first, int64_t count) {
    const auto shifted = [](auto* pointer, int64_t by) { return pointer ? pointer + by : nullptr; };
    with_terms(form.terms, [&](auto terms) {
        for_best_isa([&](auto isa) {
            for_blocks<terms>(
                form, first, count, [&](auto together, int64_t at, int64_t entry, const Block<P>& block) {
                    backward_block<terms, together>(isa, block, shifted(x, at), grad_y + at,
                                                    shifted(grad_x, at), shifted(grad_left, entry),
                                                    shifted(grad_right, entry));
                });
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
