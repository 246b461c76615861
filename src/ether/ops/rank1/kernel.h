// Kernels of the Rank1 form, free of torch: y = x + sum_k c_k left_k (right_k . x), block by block.
#pragma once

#include <cstdint>

namespace ether::ops {

// A sum of rank-one terms (at most 4) over `blocks` contiguous pieces of a feature axis.
// left and right are (bank, terms, blocks, size), row-major; rows[t] picks the bank entry of token t (null:
// entry 0).
template <typename P>
struct Rank1View {
    const P* left;
    const P* right;
    const P* coefficients;  // (terms)
    const int32_t* rows;    // (tokens) or null
    int64_t terms, blocks, size;

    int64_t width() const { return blocks * size; }
    int64_t entry() const { return terms * width(); }  // values of one bank entry
    int64_t offset(int64_t token) const { return rows ? rows[token] * entry() : 0; }
};

// Tokens first..first+count, whose rows begin at x and y. y may be x.
template <typename P>
void rank1_forward(const Rank1View<P>& form, const P* x, P* y, int64_t first, int64_t count);

// grad_x (null: not wanted) from grad_y; the sums over tokens are added to grad_left and grad_right (bank,
// terms, blocks, size), where they are not null. x is read only if one of them is given. Where left is right,
// both may be one sum, which is faster.
template <typename P>
void rank1_backward(const Rank1View<P>& form, const P* x, const P* grad_y, P* grad_x, P* grad_left,
                    P* grad_right, int64_t first, int64_t count);

}  // namespace ether::ops
