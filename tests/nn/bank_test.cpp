// Banks: each row of a mixed batch is what its own adapter makes of it, for every form.
#include "ether/nn/bank.h"

#include <gtest/gtest.h>

#include "ether/core/error.h"
#include "gradcheck.h"
#include "io/test_files.h"

namespace ether::nn {
namespace {

using at::Tensor;
using test::gradcheck;
using test::near;
using test::normal;

constexpr int64_t kWidth = 12, kEntries = 3;

// `count` entries of a square matrix.
Overlay overlay(uint64_t seed, int64_t width, int64_t count) {
    const auto places = (normal({width * width}, seed).argsort()).narrow(0, 0, count).contiguous();
    return {{std::make_shared<ops::SparsePattern>(ops::places_of(places, width), width, width)},
            normal({count}, seed + 1)};
}

std::vector<Form> one_of_each(uint64_t seed) {
    const auto left = normal({2, 3, 4}, seed), right = normal({2, 3, 4}, seed + 1);
    return {Rank1{left, right, {-1, 0.5}},
            Rank1{left, left, {-2, 1}},
            LowRank{normal({5, kWidth}, seed + 2), normal({kWidth, 5}, seed + 3), 0.7},
            Scale{normal({kWidth}, seed + 4)},
            Shift{normal({kWidth}, seed + 5)},
            BlockDiagonal{normal({4, 3, 3}, seed + 6)},
            BlockDiagonal{normal({1, 3, 3}, seed + 7)},  // one for all pieces
            Permute{at::arange(kWidth).flip(0)},
            PairRotate{normal({kWidth}, seed + 8), normal({kWidth}, seed + 9), 3},
            Dropout{0.5},
            Dense{{normal({kWidth, kWidth}, seed + 12)},
                  [](const std::vector<Tensor>& of) { return of[0] * 2; },
                  kWidth},
            overlay(seed + 10, kWidth, 5 + static_cast<int64_t>(seed / 100))};  // entries of several sizes
}

SiteForms as_output(const Form& form) {
    SiteForms forms;
    forms.output.push_back(form);
    return forms;
}

TEST(Bank, EachRowHasItsOwnAdapter) {
    const auto x = normal({7, kWidth}, 1);
    const auto rows = at::tensor({2, 0, 1, 1, 2, 0, 0}, at::kInt);
    const size_t kinds = one_of_each(0).size();
    for (size_t kind = 0; kind < kinds; ++kind) {
        std::vector<SiteForms> entries;
        for (uint64_t entry = 0; entry < kEntries; ++entry)
            entries.push_back(as_output(one_of_each(100 * entry)[kind]));
        const auto bank = banked(entries);
        const auto mixed = apply_form(bank.output.front(), x, {.rows = rows});
        for (int64_t t = 0; t < x.size(0); ++t) {
            const auto& own = entries[static_cast<size_t>(rows[t].item<int>())].output.front();
            EXPECT_TRUE(near(mixed[t], apply_form(own, x[t].unsqueeze(0)).squeeze(0), 1e-13)) << kind;
        }
    }
}

TEST(Bank, GradientsReachEveryEntry) {
    const auto x = normal({5, kWidth}, 1);
    const auto rows = at::tensor({2, 0, 1, 1, 2}, at::kInt);
    ops::SparsePatterns patterns;
    for (const int64_t count : {3, 4, 5}) patterns.push_back(overlay(count, kWidth, count).patterns[0]);
    EXPECT_TRUE(gradcheck(
        [&](const std::vector<Tensor>& in) {
            const auto low = apply_form(LowRank{in[1], in[2], 0.7}, in[0], {.rows = rows});
            const auto block = apply_form(BlockDiagonal{in[3]}, in[0], {.rows = rows});
            const auto pair = apply_form(PairRotate{in[4], in[5], 2}, in[0], {.rows = rows});
            return low + block + pair + apply_form(Overlay{patterns, in[6]}, in[0], {.rows = rows});
        },
        {{"x", x},
         {"a", normal({kEntries, 5, kWidth}, 2)},
         {"b", normal({kEntries, kWidth, 5}, 3)},
         {"blocks", normal({kEntries, 1, 3, 3}, 4)},
         {"cosine", normal({kEntries, kWidth}, 5)},
         {"sine", normal({kEntries, kWidth}, 6)},
         {"entries", normal({12}, 7)}}));
}

TEST(Bank, ASideThatIsOneTensorStaysOne) {
    const auto bank = banked({as_output(one_of_each(0)[1]), as_output(one_of_each(9)[1])});
    const auto& form = std::get<Rank1>(bank.output.front());
    EXPECT_TRUE(form.left.is_same(form.right));
}

TEST(Bank, RefusesAdaptersOfOtherKindsAndSizes) {
    const auto forms = one_of_each(0);
    EXPECT_FAILS(adapter, "cannot share a batch", banked({as_output(forms[0]), as_output(forms[2])}));
    EXPECT_FAILS(adapter, "cannot share a batch", banked({as_output(forms[0]), {}}));
    EXPECT_FAILS(adapter, "cannot share a batch",
                 banked({as_output(forms[3]), as_output(Scale{normal({kWidth + 1}, 1)})}));
    EXPECT_FAILS(adapter, "cannot share a batch",
                 banked({as_output(forms[0]),
                         as_output(Rank1{
                             std::get<Rank1>(forms[0]).left, std::get<Rank1>(forms[0]).right, {-1, 0.6}})}));
    EXPECT_FAILS(adapter, "cannot share a batch",
                 banked({as_output(overlay(1, kWidth, 2)), as_output(overlay(1, kWidth + 1, 2))}));
    EXPECT_FAILS(adapter, "cannot share a batch",
                 banked({as_output(forms[7]), as_output(Permute{at::arange(kWidth)})}));
    EXPECT_FAILS(adapter, "cannot share a batch", banked({as_output(forms[9]), as_output(Dropout{0.1})}));
    auto rotate = std::get<PairRotate>(forms[8]);
    rotate.half = 1;
    EXPECT_FAILS(adapter, "cannot share a batch", banked({as_output(forms[8]), as_output(rotate)}));
    SiteForms two;
    two.delta = {{forms[2]}, {forms[2]}};
    auto one = two;
    one.delta.pop_back();
    EXPECT_FAILS(adapter, "cannot share a batch", banked({two, one}));
}

}  // namespace
}  // namespace ether::nn
