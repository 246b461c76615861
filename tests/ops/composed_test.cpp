// What is composed of libtorch's operations draws the kernels' dropouts. (That it computes what the kernels
// do is seen by running all tests of ops with ETHER_COMPOSED set: tests/CMakeLists.txt.)
#include <gtest/gtest.h>

#include "ether/core/random.h"
#include "ether/ops/attention/attention.h"
#include "ether/ops/attention/composed.h"
#include "ether/ops/dropout/dropout.h"
#include "gradcheck.h"

namespace ether::ops {
namespace {

using at::Tensor;
using test::near;
using test::normal;

TEST(Composed, KeepsWhatTheKernelsKeep) {
    const uint64_t key = 0xfedcba9876543210;
    const double p = 0.3;
    for (const int64_t first : {int64_t{0}, (int64_t{1} << 32) - 500, int64_t{1} << 45}) {
        const auto scales = keep_scales(key, at::arange(first, first + 1000, at::kLong), p, at::kDouble);
        for (int64_t i = 0; i < 1000; ++i) {
            const bool kept = keep(key, static_cast<uint64_t>(first + i), keep_threshold(p));
            ASSERT_EQ(scales[i].item<double>(), kept ? 1 / (1 - p) : 0) << first + i;
        }
    }
}

TEST(Composed, AttentionDropsWhatTheKernelDrops) {
    const auto query_offsets = at::tensor({0, 3, 10, 11}, at::kInt),
               key_offsets = at::tensor({0, 5, 14, 17}, at::kInt);
    const auto q = normal({11, 24}, 1), k = normal({17, 12}, 2), v = normal({17, 12}, 3);
    for (const bool causal : {false, true})
        for (const int64_t longest : {0, 20}) {
            AttentionOptions options{.heads = 4, .kv_heads = 2, .scale = 0.5, .causal = causal, .window = 4};
            options.dropout = 0.4;
            options.random = Random(7);
            options.dropout_row = 123;
            options.longest_query = options.longest_key = longest;
            EXPECT_TRUE(near(attention_composed(q, k, v, query_offsets, key_offsets, options),
                             attention(q, k, v, query_offsets, key_offsets, options), 1e-12));
        }
}

TEST(Composed, AttentionKeepsNaNInItsSequence) {
    const auto offsets = at::tensor({0, 3, 5}, at::kInt);
    const auto q = normal({5, 4}, 1), k = normal({5, 4}, 2);
    auto v = normal({5, 4}, 3);
    v[4].fill_(std::numeric_limits<double>::quiet_NaN());
    const auto y = attention_composed(q, k, v, offsets, offsets, {.heads = 2, .kv_heads = 2});
    EXPECT_EQ(y.isnan().any(1).sum().item<int64_t>(), 2);
}

}  // namespace
}  // namespace ether::ops
