// The attention kernel against softmax(scale q k^T) v written out head by head in double.
#include "ether/ops/attention/attention.h"

#include <gtest/gtest.h>

#include <numeric>

#include "ether/core/parallel.h"
#include "ether/ops/gemm/tile.h"
#include "gradcheck.h"

namespace ether::ops {
namespace {

using at::Tensor;
using test::near;
using test::normal;
using Tensors = std::vector<Tensor>;
using Lengths = std::vector<int64_t>;

Tensor offsets(const Lengths& lengths) {
    std::vector<int32_t> sums = {0};
    for (const int64_t length : lengths) sums.push_back(sums.back() + static_cast<int32_t>(length));
    return at::tensor(at::ArrayRef<int32_t>(sums), at::kInt);
}

struct Case {
    const char* name;
    Lengths queries, keys;  // of each sequence
    int64_t heads, kv_heads, head_dim;
    bool causal;
    int64_t window;
};

int64_t total(const Lengths& lengths) { return std::accumulate(lengths.begin(), lengths.end(), int64_t{0}); }

AttentionOptions options_of(const Case& c) {
    AttentionOptions options{.heads = c.heads, .kv_heads = c.kv_heads};
    options.scale = 1 / std::sqrt(static_cast<double>(c.head_dim));
    options.causal = c.causal;
    options.window = c.window;
    return options;
}

Tensor reference(const Case& c, const Tensor& q, const Tensor& k, const Tensor& v) {
    const int64_t d = c.head_dim;
    std::vector<Tensor> sequences;
    int64_t query = 0, key = 0;
    for (size_t s = 0; s < c.queries.size(); ++s) {
        const int64_t m = c.queries[s], n = c.keys[s];
        const auto own = at::arange(m).unsqueeze(1) + (n - m), other = at::arange(n).unsqueeze(0);
        auto hidden = at::zeros({m, n}, at::kBool);
        if (c.causal) hidden = hidden.logical_or(other.gt(own));
        if (c.window) hidden = hidden.logical_or(other.le(own - c.window));
        std::vector<Tensor> heads;
        for (int64_t h = 0; h < c.heads; ++h) {
            const int64_t g = h / (c.heads / c.kv_heads);
            auto part = [&](const Tensor& t, int64_t first, int64_t count, int64_t head) {
                return t.narrow(0, first, count).narrow(1, head * d, d);
            };
            const auto scores =
                part(q, query, m, h).mm(part(k, key, n, g).t()) / std::sqrt(static_cast<double>(d));
            heads.push_back(scores.masked_fill(hidden, -1e300).softmax(-1).mm(part(v, key, n, g)));
        }
        sequences.push_back(at::cat(heads, 1));
        query += m, key += n;
    }
    return at::cat(sequences);
}

class Attention : public testing::TestWithParam<Case> {
  protected:
    const Case& c = GetParam();
    const Tensor query_offsets = offsets(c.queries), key_offsets = offsets(c.keys);
    const Tensor q = normal({total(c.queries), c.heads*c.head_dim}, 1),
                 k = normal({total(c.keys), c.kv_heads*c.head_dim}, 2),
                 v = normal({total(c.keys), c.kv_heads*c.head_dim}, 3);

    Tensor run(const Tensor& q_, const Tensor& k_, const Tensor& v_, const AttentionOptions& options) const {
        return attention(q_, k_, v_, query_offsets, key_offsets, options);
    }
};

TEST_P(Attention, EqualsReference) {
    EXPECT_TRUE(near(run(q, k, v, options_of(c)), reference(c, q, k, v), 1e-13));
}

TEST_P(Attention, FloatFollowsDouble) {
    const auto longest = *std::max_element(c.keys.begin(), c.keys.end());
    const double tolerance = 1.2e-7 * static_cast<double>(longest + c.head_dim + 8);
    EXPECT_TRUE(near(run(q.to(at::kFloat), k.to(at::kFloat), v.to(at::kFloat), options_of(c)),
                     reference(c, q, k, v), tolerance));
}

TEST_P(Attention, Gradient) {
    EXPECT_TRUE(test::gradcheck([&](const Tensors& in) { return run(in[0], in[1], in[2], options_of(c)); },
                                {{"q", q}, {"k", k}, {"v", v}}, {.entries = 12}));
}

// However many threads share tiles, and key heads' gradients.
TEST_P(Attention, ThreadsChangeNothingButRounding) {
    const auto upstream = normal({total(c.queries), c.heads * c.head_dim}, 4);
    const auto results = [&](int threads) {
        set_num_threads(threads);
        Tensors in;
        for (const auto& x : {q, k, v}) in.push_back(x.detach().clone().requires_grad_(true));
        const auto y = run(in[0], in[1], in[2], options_of(c));
        y.backward(upstream);
        return Tensors{y.detach(), in[0].grad(), in[1].grad(), in[2].grad()};
    };
    const int before = num_threads();
    const auto one = results(1);
    for (const int threads : {2, 3, 7}) {
        const auto shared = results(threads), again = results(threads);
        for (size_t i = 0; i < one.size(); ++i) {
            EXPECT_TRUE(near(shared[i], one[i], 1e-13)) << i << ", threads " << threads;
            EXPECT_TRUE(at::equal(shared[i], again[i])) << i << ", threads " << threads;
        }
    }
    set_num_threads(before);
}

TEST_P(Attention, GradientWithTheSameDropoutMask) {
    auto options = options_of(c);
    options.dropout = 0.3;
    options.random = Random(11);
    EXPECT_TRUE(test::gradcheck([&](const Tensors& in) { return run(in[0], in[1], in[2], options); },
                                {{"q", q}, {"k", k}, {"v", v}}, {.entries = 8}));
}

// Each value that meets another was rounded to 8 bits, and so is the result: errors relative to the largest.
TEST_P(Attention, BfloatFollowsDouble) {
    for (const double dropout : {0.0, 0.3}) {
        auto options = options_of(c);
        options.dropout = dropout;
        options.random = Random(11);
        const auto upstream = normal({total(c.queries), c.heads * c.head_dim}, 4, at::kBFloat16);
        auto results = [&](at::ScalarType dtype) {
            Tensors in;
            for (const auto& x : {q, k, v})
                in.push_back(x.to(at::kBFloat16).to(dtype).detach().requires_grad_(true));
            const auto y = run(in[0], in[1], in[2], options);
            EXPECT_EQ(y.scalar_type(), dtype);
            y.backward(upstream.to(dtype));
            return Tensors{y.detach(), in[0].grad(), in[1].grad(), in[2].grad()};
        };
        const auto exact = results(at::kDouble), rounded = results(at::kBFloat16);
        for (size_t i = 0; i < exact.size(); ++i) {
            const double largest = std::max(1.0, exact[i].abs().max().item<double>());
            EXPECT_TRUE(near(rounded[i].to(at::kDouble), exact[i], largest / 32))
                << i << ", dropout " << dropout;
        }
    }
}

const Lengths kRagged = {1, 63, 64, 65, 130};

INSTANTIATE_TEST_SUITE_P(
    Cases, Attention,
    testing::Values(Case{"one", {1}, {1}, 1, 1, 1, false, 0},
                    Case{"full", kRagged, kRagged, 2, 2, 8, false, 0},
                    Case{"causal", kRagged, kRagged, 2, 2, 8, true, 0},
                    Case{"grouped", kRagged, kRagged, 4, 2, 4, true, 0},
                    Case{"one_kv_head", {5, 9}, {5, 9}, 3, 1, 6, false, 0},
                    Case{"one_long", {200}, {200}, 3, 1, 6, true, 0},
                    Case{"nobody_asks", {0, 3, 0}, {4, 3, 2}, 2, 1, 4, true, 0},
                    Case{"window", kRagged, kRagged, 2, 1, 4, true, 7},
                    Case{"window_of_one", {70}, {70}, 1, 1, 4, true, 1},
                    Case{"prefix", kRagged, {4, 66, 67, 68, 133}, 2, 1, 4, true, 0},
                    Case{"prefix_full", {3, 65}, {13, 75}, 2, 2, 4, false, 0},
                    Case{"cache_and_window", {1, 2, 66}, {100, 70, 90}, 2, 1, 4, true, 33}),
    [](const auto& info) { return info.param.name; });

TEST(AttentionDropout, KeepsTheMean) {
    const Case c{"", {20}, {20}, 2, 1, 4, true, 0};
    const auto q = normal({20, 8}, 1), k = normal({20, 4}, 2), v = normal({20, 4}, 3);
    auto options = options_of(c);
    const auto exact = attention(q, k, v, offsets({20}), offsets({20}), options);
    options.dropout = 0.2;
    auto sum = at::zeros_like(exact);
    constexpr int kDraws = 4000;
    for (int i = 0; i < kDraws; ++i) {
        options.random = Random(static_cast<uint64_t>(i));
        sum += attention(q, k, v, offsets({20}), offsets({20}), options);
    }
    // A draw deviates by at most sqrt(p / (1 - p)) max|v| = 0.5 * 3 or so; five standard deviations of the
    // mean.
    EXPECT_TRUE(near(sum / kDraws, exact, 5 * 1.5 / std::sqrt(static_cast<double>(kDraws))));
    EXPECT_TRUE(at::equal(attention(q, k, v, offsets({20}), offsets({20}), options),
                          attention(q, k, v, offsets({20}), offsets({20}), options)));
}

TEST(AttentionDropout, HeadsAndSequencesDrawDifferently) {
    // Equal heads and sequences give equal rows but for the mask.
    const auto one = normal({30, 4}, 1), both = at::cat({one, one}, 1);
    AttentionOptions options{.heads = 2, .kv_heads = 2, .scale = 0.5, .dropout = 0.5, .random = Random(3)};
    const auto y = attention(at::cat({both, both}), at::cat({both, both}), at::cat({both, both}),
                             offsets({30, 30}), offsets({30, 30}), options);
    EXPECT_FALSE(at::allclose(y.narrow(1, 0, 4), y.narrow(1, 4, 4)));
    EXPECT_FALSE(at::allclose(y.narrow(0, 0, 30), y.narrow(0, 30, 30)));
}

TEST(AttentionTypes, BfloatIsRoundedOnceOrTwice) {
    const Case c{"", {17}, {17}, 2, 2, 8, true, 0};
    const auto q = normal({17, 16}, 1, at::kBFloat16), k = normal({17, 16}, 2, at::kBFloat16),
               v = normal({17, 16}, 3, at::kBFloat16);
    const auto y = attention(q, k, v, offsets({17}), offsets({17}), options_of(c));
    EXPECT_EQ(y.scalar_type(), at::kBFloat16);
    EXPECT_TRUE(near(y, reference(c, q.to(at::kDouble), k.to(at::kDouble), v.to(at::kDouble)),
                     1.6e-2));  // of the result, and of probabilities
}

// Products of pairs at all sizes of blocks and rests, by whichever instructions this machine has, on operands
// that begin anywhere.
TEST(TileProduct, PairsAgreeWithFloats) {
    const auto rounded = [](int64_t rows, int64_t columns, uint64_t seed) {
        return normal({rows, columns}, seed, at::kBFloat16).to(at::kFloat).contiguous();
    };
    for (const int64_t m : {1, 2, 3, 4, 5, 6, 7, 8, 13})
        for (const int64_t n : {1, 3, 4, 7, 8, 16, 31, 48, 64, 100})
            for (const int64_t k : {1, 2, 7, 32}) {
                const auto a = rounded(m, 2 * k, 1), b = rounded(2 * k, n, 2), c = rounded(m, n, 3);
                std::vector<Pair> left(static_cast<size_t>(m * k)), right(static_cast<size_t>(k * n + 1));
                for (int64_t i = 0; i < m * k; ++i)
                    left[static_cast<size_t>(i)] = {a.const_data_ptr<float>()[2 * i],
                                                    a.const_data_ptr<float>()[2 * i + 1]};
                for (int64_t i = 0; i < k; ++i)
                    for (int64_t j = 0; j < n; ++j)
                        right[static_cast<size_t>(i * n + j + 1)] = {b[2 * i][j].item<float>(),
                                                                     b[2 * i + 1][j].item<float>()};
                auto y = c.clone();
                tile_product(m, n, k, 0.5F, {left.data(), k}, {right.data() + 1, n},
                             {y.mutable_data_ptr<float>(), n}, true);
                EXPECT_TRUE(near(y, c + 0.5 * a.mm(b), 1e-6 * static_cast<double>(2 * k + 8)))
                    << m << " " << n << " " << k;
            }
}

}  // namespace
}  // namespace ether::ops
