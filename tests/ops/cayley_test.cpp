// Rotations of skew-symmetric matrices against libtorch's own operations.
#include "ether/ops/cayley/cayley.h"

#include <gtest/gtest.h>

#include <limits>

#include "gradcheck.h"

namespace ether::ops {
namespace {

using at::Tensor;
using test::gradcheck;
using test::near;
using Tensors = std::vector<Tensor>;

Tensor skew_of(const Tensor& x) { return x - x.transpose(1, 2); }
Tensor skew(int64_t count, int64_t size, at::ScalarType dtype = at::kDouble, double deviation = 0.2) {
    return deviation * skew_of(test::normal({count, size, size}, 1)).to(dtype);
}

// By the definition, term by term.
Tensor series(const Tensor& skew, int64_t degree) {
    auto sum = at::eye(skew.size(1), skew.options()).expand_as(skew).clone(), power = sum.clone();
    for (int64_t k = 1; k <= degree; ++k) {
        power = power.bmm(skew);
        sum += (k == degree && k > 1 ? 1 : 2) * power;
    }
    return sum;
}

TEST(Cayley, IsItsFormula) {
    for (const int64_t size : {1, 2, 4, 7, 32, 33, 130}) {
        const auto s = skew(3, size), one = at::eye(size, s.options());
        const auto expected = (one - s).bmm(at::linalg_inv(one + s));
        EXPECT_TRUE(near(cayley(s), expected, 1e-12)) << size;
        EXPECT_TRUE(near(cayley(s.to(at::kFloat)), expected, 1e-4)) << size;
        for (const int64_t degree : {0, 1, 2, 3, 4, 7}) {
            const auto small = s / static_cast<double>(size);
            EXPECT_TRUE(near(cayley_neumann(small, degree), series(small, degree), 1e-13))
                << size << " " << degree;
        }
    }
    EXPECT_EQ(cayley(skew(0, 4)).size(0), 0);
    // So large that the rotation is nearly the opposite of none.
    const auto large = skew(50, 8, at::kFloat, 1e4), r = cayley(large);
    EXPECT_TRUE(near(r.bmm(r.transpose(1, 2)), at::eye(8).expand_as(r), 1e-3));
}

TEST(Cayley, Gradients) {
    for (const int64_t size : {1, 3, 8, 130}) {
        const test::NamedInputs inputs = {{"x", 0.1 * test::normal({2, size, size}, 1)}};
        EXPECT_TRUE(gradcheck([](const Tensors& in) { return cayley(in[0]); }, inputs));
        EXPECT_TRUE(gradcheck([](const Tensors& in) { return cayley_neumann(in[0], 4); }, inputs));
        EXPECT_TRUE(gradcheck([](const Tensors& in) { return cayley(skew_of(in[0])); }, inputs));
        for (const int64_t degree : {1, 2, 3, 5}) {
            EXPECT_TRUE(gradcheck(
                [&](const Tensors& in) { return cayley_neumann(skew_of(in[0]) / size, degree); }, inputs))
                << size << " " << degree;
        }
    }
}

TEST(Cayley, EachMatrixIsAloneInIt) {
    auto s = skew(40, 32, at::kFloat);
    const auto clean = cayley(s), clean_series = cayley_neumann(s, 4);
    s[7].fill_(std::numeric_limits<float>::quiet_NaN());
    for (const auto& [bad, good] : {std::pair(cayley(s), clean), {cayley_neumann(s, 4), clean_series}}) {
        EXPECT_TRUE(bad[7].isnan().all().item<bool>());
        for (const int64_t other : {0, 6, 8, 39}) EXPECT_TRUE(at::equal(bad[other], good[other])) << other;
    }
}

}  // namespace
}  // namespace ether::ops
