// Kernels of the Rank1 form, free of torch: y = x + sum_k c_k left_k (right_k . x), block by block.
#pragma once

#include <cstdint>

namespace ether::ops {

// A chain-free sum of rank-one terms over `blocks` contiguous pieces of a feature axis.
// left and right are (bank, terms, blocks, size), row-major; rows[t] picks the bank entry of token t (null:
// entry 0).
template <typename P>
struct Rank1View {
    const P* left;
    const P* right;
    const P* coefficients;  // (terms)
    const int32_t* rows;    // (tokens) or null
    int64_t bank, terms, blocks, size;

    int64_t width() const { return blocks * size; }
    int64_t entry() const { return terms * width(); }  // values of one bank entry
    int64_t offset(int64_t token) const { return rows ? rows[token] * entry() : 0; }
};

// y (tokens, width) from x (tokens, width); y may be x.
template <typename X, typename P>
void rank1_forward(const Rank1View<P>& form, const X* x, X* y, int64_t tokens);

// grad_x from grad_y; and, where the pointers are not null, grad_left and grad_right (bank, terms, blocks,
// size), overwritten with the sums over tokens.
template <typename X, typename P>
void rank1_backward(const Rank1View<P>& form, const X* x, const X* grad_y, X* grad_x, P* grad_left,
                    P* grad_right, int64_t tokens);

}  // namespace ether::ops
