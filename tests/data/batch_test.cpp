#include "ether/data/batch.h"

#include "io/test_files.h"

namespace ether::data {
namespace {

template <typename T>
std::vector<T> values(const at::Tensor& tensor) {
    const T* data = tensor.const_data_ptr<T>();
    return {data, data + tensor.numel()};
}
using Ints = std::vector<int64_t>;

TEST(Collate, LaysSequencesEndToEnd) {
    const std::vector<Sequence> sequences{
        {.ids = {1, 2, 3}, .type_ids = {0, 1, 1}, .targets = {}, .label = 2},
        {.ids = {9}, .type_ids = {}, .targets = {}, .label = 7},
        {.ids = {4, 5}, .type_ids = {}, .targets = {}, .label = 1}};
    const Batch batch = collate(sequences, Ints{2, 0}, LabelType::index);
    EXPECT_EQ(values<int64_t>(batch.token_ids), (Ints{4, 5, 1, 2, 3}));
    EXPECT_EQ(values<int64_t>(batch.type_ids), (Ints{0, 0, 0, 1, 1}));
    EXPECT_EQ(values<int64_t>(batch.positions), (Ints{0, 1, 0, 1, 2}));
    EXPECT_EQ(values<int32_t>(batch.cu_seqlens), (std::vector<int32_t>{0, 2, 5}));
    EXPECT_EQ(values<int64_t>(batch.labels), (Ints{1, 2}));
    EXPECT_EQ(batch.rows, (Ints{2, 0}));
    EXPECT_EQ(batch.max_length, 3);
    EXPECT_EQ(batch.size(), 2);
    EXPECT_EQ(batch.tokens(), 5);
    EXPECT_FALSE(batch.targets.defined());
    EXPECT_EQ(values<float>(collate(sequences, Ints{1}, LabelType::real).labels), std::vector<float>{7});
    EXPECT_FALSE(collate(sequences, Ints{1}, LabelType::none).labels.defined());
}

TEST(Collate, CarriesTargets) {
    const std::vector<Sequence> sequences{{.ids = {1, 2}, .type_ids = {}, .targets = {2, kIgnoredTarget}},
                                          {.ids = {3}, .type_ids = {}, .targets = {kIgnoredTarget}}};
    EXPECT_EQ(values<int64_t>(collate(sequences, Ints{0, 1}, LabelType::none).targets),
              (Ints{2, -100, -100}));
}

TEST(Collate, RefusesEmptySequences) {
    const std::vector<Sequence> sequences{{.ids = {1}, .type_ids = {}, .targets = {}}, {}};
    EXPECT_FAILS(data, "example 2 of the data set: expected one token or more",
                 collate(sequences, Ints{0, 1}, LabelType::none));
}

TEST(CollateDeathTest, OurOwnMistakesAbort) {
    const std::vector<Sequence> sequences{{.ids = {1, 2}, .type_ids = {}, .targets = {2, 3}},
                                          {.ids = {1, 2}, .type_ids = {0}, .targets = {}},
                                          {.ids = {1, 2}, .type_ids = {}, .targets = {}}};
    EXPECT_DEATH(collate(sequences, Ints{}, LabelType::none), "internal error");
    EXPECT_DEATH(collate(sequences, Ints{3}, LabelType::none), "internal error");
    EXPECT_DEATH(collate(sequences, Ints{1}, LabelType::none), "internal error");
    EXPECT_DEATH(collate(sequences, Ints{0, 2}, LabelType::none), "internal error");
}

}  // namespace
}  // namespace ether::data
