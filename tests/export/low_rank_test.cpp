// Products of low rank against dense algebra in double.
#include "ether/export/low_rank.h"

#include <gtest/gtest.h>
#include <rapidcheck.h>
#include <rapidcheck/gtest.h>

#include "tensors.h"

namespace ether::exporting {
namespace {

using test::near;
using test::normal;

at::Tensor product(const LowRank& factors) { return factors.b.mm(factors.a); }

LowRank drawn(int64_t out, int64_t in, int64_t rank, uint64_t seed = 1) {
    return {normal({rank, in}, seed), normal({out, rank}, seed + 1)};
}

// Of all products of that rank none is nearer: the error is the tail of the dense matrix's singular values.
RC_GTEST_PROP(Truncated, IsOptimal, (uint64_t seed)) {
    const int64_t out = *rc::gen::inRange(1, 20), in = *rc::gen::inRange(1, 20),
                  rank = *rc::gen::inRange(1, 30), kept = *rc::gen::inRange(1, 30);
    const auto change = drawn(out, in, rank, seed);
    const auto dense = product(change);
    const auto [factors, square, lost_square] = truncated(change, kept);
    RC_ASSERT(factors.rank() == std::min({kept, rank, out, in}));
    const auto squares = at::linalg_svdvals(dense).square();
    const int64_t head = std::min(kept, squares.size(0));
    const double all = squares.sum().item<double>(), scale = std::max(1.0, all),
                 tail = squares.narrow(0, head, squares.size(0) - head).sum().item<double>();
    RC_ASSERT(std::abs(square - all) <= 1e-12 * scale);
    RC_ASSERT(std::abs(lost_square - tail) <= 1e-12 * scale);
    const double lost = (dense - product(factors)).square().sum().item<double>();
    RC_ASSERT(std::abs(lost - tail) <= 1e-12 * scale);
}

TEST(Truncated, KeepsAllWhereTheRankSuffices) {
    const auto change = drawn(9, 7, 3);
    const auto nearest = truncated(change, 3);
    EXPECT_TRUE(near(product(nearest.factors), product(change), 1e-14));
    EXPECT_EQ(nearest.lost_square, 0);
}

TEST(Truncated, BothFactorsAreOfOneSize) {  // neither overflows, or vanishes, in a server's narrow dtype
    auto change = drawn(9, 7, 4);
    change.a = change.a * 1e-3;
    change.b = change.b * 1e3;
    const auto [a, b] = truncated(change, 2).factors;
    EXPECT_NEAR(a.norm().item<double>(), b.norm().item<double>(), 1e-12);
}

TEST(Factored, IsExactAtTheSmallerSize) {
    for (const auto& [out, in] : {std::pair{5, 8}, std::pair{8, 5}, std::pair{6, 6}}) {
        const auto change = normal({out, in}, 3);
        const auto factors = factored(change);
        EXPECT_EQ(factors.rank(), std::min(out, in));
        EXPECT_TRUE(at::equal(product(factors), change));
    }
}

TEST(Padded, IsTheSameProduct) {
    const auto factors = drawn(5, 8, 2);
    const auto more = padded(factors, 6);
    EXPECT_EQ(more.a.sizes(), (at::IntArrayRef{6, 8}));
    EXPECT_EQ(more.b.sizes(), (at::IntArrayRef{5, 6}));
    EXPECT_TRUE(near(product(more), product(factors), 1e-15));
}

}  // namespace
}  // namespace ether::exporting
