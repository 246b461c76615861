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

std::vector<Form> one_of_each(uint64_t seed) {
    const auto left = normal({2, 3, 4}, seed), right = normal({2, 3, 4}, seed + 1);
    return {Rank1{left, right, {-1, 0.5}},
            Rank1{left, left, {-2, 1}},
            LowRank{normal({5, kWidth}, seed + 2), normal({kWidth, 5}, seed + 3), 0.7},
            Scale{normal({kWidth}, seed + 4)},
            Shift{normal({kWidth}, seed + 5)},
            BlockDiagonal{normal({4, 3, 3}, seed + 6)}};
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
    EXPECT_TRUE(gradcheck(
        [&](const std::vector<Tensor>& in) {
            const auto low = apply_form(LowRank{in[1], in[2], 0.7}, in[0], {.rows = rows});
            return low + apply_form(BlockDiagonal{in[3]}, in[0], {.rows = rows});
        },
        {{"x", x},
         {"a", normal({kEntries, 5, kWidth}, 2)},
         {"b", normal({kEntries, kWidth, 5}, 3)},
         {"blocks", normal({kEntries, 4, 3, 3}, 4)}}));
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
    EXPECT_FAILS(adapter, "changes single weights",
                 banked({as_output(Overlay{at::zeros({1}, at::kLong), normal({1}, 1), 3, 3})}));
}

}  // namespace
}  // namespace ether::nn
