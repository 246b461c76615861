#include <type_traits>
#include <utility>

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

template <int T, typename V, typename P, typename Lanes>
ETHER_INLINE void load_all(V (&values)[T], const Block<P>& block, const P* vectors, int64_t j,
                           const Lanes& lanes) {
    for (int k = 0; k < T; ++k) values[k] = load<P>(vectors + k * block.stride + j, lanes);
}

// factors[r][k] = c_k (vector_k . row_r)
template <int T, int R, int bytes, typename P>
ETHER_INLINE void products(Isa<bytes> isa, const Block<P>& block, const P* vectors, const P* rows,
                           P (&factors)[R][T]) {
    using V = Vector<P, bytes>;
    V sums[R][T] = {};
    for_vectors<P>(isa, block.size, block.room, [&](int64_t j, const auto& lanes) {
        V vector[T];
        load_all(vector, block, vectors, j, lanes);
        for (int r = 0; r < R; ++r) {
            const V row = load<P>(rows + r * block.stride + j, lanes);
            for (int k = 0; k < T; ++k) sums[r][k] += row * vector[k];
        }
    });
    sums_of<P, R * T>(&sums[0][0], &factors[0][0]);
    for (int r = 0; r < R; ++r)
        for (int k = 0; k < T; ++k) factors[r][k] *= block.coefficients[k];
}

template <int T, int R, int bytes, typename P>
ETHER_INLINE void forward_block(Isa<bytes> isa, const Block<P>& block, const P* x, P* y) {
    using V = Vector<P, bytes>;
    P of_x[R][T];
    products<T, R>(isa, block, block.right, x, of_x);
    for_vectors<P>(isa, block.size, block.room, [&](int64_t j, const auto& lanes) {
        V left[T];
        load_all(left, block, block.left, j, lanes);
        for (int r = 0; r < R; ++r) {
            V value = load<P>(x + r * block.stride + j, lanes);
            for (int k = 0; k < T; ++k) value += of_x[r][k] * left[k];
            store<P>(y + r * block.stride + j, value, lanes);
        }
    });
}

// grad_x = g + sum_k c_k right_k (left_k . g); the vectors' gradients are added to the sums. What is null is
// not wanted. reflects: left is right, and their gradient is one, sum_left.
template <int T, int R, bool reflects, int bytes, typename P>
ETHER_INLINE void backward_block(Isa<bytes> isa, const Block<P>& block, const P* x, const P* g, P* grad_x,
                                 P* sum_left, P* sum_right) {
    using V = Vector<P, bytes>;
    P of_g[R][T], of_x[R][T];
    products<T, R>(isa, block, block.left, g, of_g);
    products<T, R>(isa, block, block.right, x, of_x);
    for_vectors<P>(isa, block.size, block.room, [&](int64_t j, const auto& lanes) {
        V right[T], left_sums[T] = {}, right_sums[T] = {};
        load_all(right, block, block.right, j, lanes);
        if (sum_left) load_all(left_sums, block, sum_left, j, lanes);
        if (!reflects && sum_right) load_all(right_sums, block, sum_right, j, lanes);
        for (int r = 0; r < R; ++r) {
            const V row_g = load<P>(g + r * block.stride + j, lanes);
            const V row_x = load<P>(x + r * block.stride + j, lanes);
            V value = row_g;
            for (int k = 0; k < T; ++k) {
                value += of_g[r][k] * right[k];
                left_sums[k] += of_x[r][k] * row_g;
                (reflects ? left_sums : right_sums)[k] += of_g[r][k] * row_x;
            }
            if (grad_x) store<P>(grad_x + r * block.stride + j, value, lanes);
        }
        for (int k = 0; k < T; ++k) {
            if (sum_left) store<P>(sum_left + k * block.stride + j, left_sums[k], lanes);
            if (!reflects && sum_right) store<P>(sum_right + k * block.stride + j, right_sums[k], lanes);
        }
    });
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
    auto run = [&](auto tokens) {
        for (; t + tokens <= count; t += tokens)
            for (int64_t offset = 0; offset < width; offset += form.size) {
                const int64_t entry = form.offset(first + t) + offset;
                body(tokens, t * width + offset, entry,
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
                              [&](auto tokens, int64_t at, int64_t, const Block<P>& block) {
                                  forward_block<terms, tokens>(isa, block, x + at, y + at);
                              });
        });
    });
}

template <typename P>
void rank1_backward(const Rank1View<P>& form, const P* x, const P* grad_y, P* grad_x, P* grad_left,
                    P* grad_right, int64_t first, int64_t count) {
    const auto shifted = [](auto* pointer, int64_t by) { return pointer ? pointer + by : nullptr; };
    if (!grad_left && !grad_right) {  // the same form, from the other side
        auto turned = form;
        std::swap(turned.left, turned.right);
        if (grad_x) rank1_forward(turned, grad_y, grad_x, first, count);
        return;
    }
    const bool reflects = form.left == form.right && grad_left == grad_right;
    with_terms(form.terms, [&](auto terms) {
        for_best_isa([&](auto isa) {
            for_blocks<terms>(
                form, first, count, [&](auto tokens, int64_t at, int64_t entry, const Block<P>& block) {
                    const auto run = [&](auto same) __attribute__((always_inline)) {
                        backward_block<terms, tokens, same>(isa, block, x + at, grad_y + at,
                                                            shifted(grad_x, at), shifted(grad_left, entry),
                                                            shifted(grad_right, entry));
                    };
                    reflects ? run(std::true_type()) : run(std::false_type());
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
