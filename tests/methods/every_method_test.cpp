// What every method of linear layers promises, on one layer: gradients, merging, starting values, exact LoRA
// factors, mixed batches, counts.
#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <numeric>
#include <set>

#include "ether/nn/bank.h"
#include "gradcheck.h"
#include "io/test_files.h"
#include "methods/sites_model.h"

namespace ether::methods {
namespace {

using at::Tensor;
using test::AdaptedSites;
using test::near;
using test::normal;
using Options = std::vector<std::pair<std::string, std::string>>;

constexpr int64_t kIn = 24, kOut = 16, kHeadDim = 8;

struct Kind {
    std::string method;
    Options options;
    int64_t trained;  // values on a layer of kIn inputs and kOut outputs
    bool starts_as_base;
    int64_t rank;                // of the exact LoRA; 0: there is none
    Options other_options = {};  // with another rank, for the property
    // A parameter whose gradient is not that of the function: a factor that the method holds constant.
    std::vector<std::string> constant = {};
};

void PrintTo(const Kind& kind, std::ostream* out) {
    *out << kind.method;
    for (const auto& [name, value] : kind.options) *out << " " << name << "=" << value;
}

const std::vector<Kind>& kinds() {
    static const std::vector<Kind> all = {
        {"ether", {}, kIn, false, 4, {{"blocks", "2"}}},
        {"ether+", {}, 2 * (kIn + kOut), true, 16, {{"side", "output"}}},
        {"hra", {{"rank", "4"}}, 4 * kIn, true, 4, {{"rank", "3"}, {"apply-gs", "true"}}},
        {"hra",
         {{"rank", "3"}, {"apply-gs", "true"}},
         3 * kIn,
         false,
         3,
         {{"rank", "7"}, {"apply-gs", "true"}}},
        {"oft",
         {{"block-size", "8"}},
         kIn / 8 * 28,
         true,
         0,
         {{"block-size", "4"}, {"cayley-neumann-terms", "3"}}},
        {"oft",
         {{"blocks", "3"}, {"block-share", "true"}, {"cayley-neumann", "false"}},
         28,
         true,
         0,
         {{"block-size", "8"}, {"cayley-neumann", "false"}}},
        {"oft-paper", {{"blocks", "4"}}, kIn * kIn / 4, true, 0, {{"blocks", "8"}, {"side", "output"}}},
        {"oft-paper",
         {{"blocks", "4"}, {"layout", "official"}},
         kIn * kIn / 4,
         true,
         kOut,
         {{"blocks", "8"}, {"layout", "official"}}},
        {"magnitude", {}, kOut, true, 0},
        {"naive", {{"blocks", "4"}}, kIn * kIn / 4, true, 0, {{"blocks", "8"}}},
        {"lora", {{"rank", "3"}}, 3 * (kIn + kOut), true, 3, {{"rslora", "true"}}},
        {"lora",
         {{"rank", "3"}, {"dora", "true"}},
         3 * (kIn + kOut) + kOut,
         true,
         0,
         {{"dora", "true"}, {"rslora", "true"}},
         {"lora_A.weight", "lora_B.weight"}},
        {"ia3", {}, kOut, true, 0},
        {"red", {}, 2 * kOut, true, 0},
        {"vera", {{"rank", "5"}}, 5 + kOut, true, 5, {{"rank", "40"}}},
        {"delora", {{"rank", "3"}}, 3 * (kIn + kOut) + 1, true, 3, {{"lambda", "2"}}},
        {"adalora", {{"rank", "3"}}, 3 * (kIn + kOut + 1), true, 3, {{"alpha", "3"}}},
        {"lorta",
         {{"rank", "3"}},
         3 * (kIn + kHeadDim + kIn / kHeadDim + 4 + 1),
         true,
         3,
         {{"orientation", "input"}, {"rslora", "true"}}},
        {"loha", {{"rank", "2"}}, 4 * (kIn + kOut), true, 4, {{"rank", "3"}}},
        {"randlora", {{"rank", "5"}}, (5 + kOut) * 4, true, kOut, {{"rank", "7"}}},
        {"vblora",
         {{"rank", "2"}, {"num-vectors", "6"}, {"vector-length", "8"}},
         6 * 8 + 2 * 6 * (kIn + kOut) / 8,
         false,
         2,
         {{"num-vectors", "5"}, {"vector-length", "4"}, {"topk", "3"}}},
        {"fourierft", {{"n-frequency", "30"}}, 30, false, kOut, {{"n-frequency", "192"}}},
        {"miss", {{"rank", "5"}}, 5 * kOut, true, 5, {{"rank", "24"}}},
        {"miss",
         {{"rank", "5"}, {"mini", "true"}, {"mini-rank", "4"}},
         20,
         true,
         5,
         {{"rank", "8"}, {"mini", "true"}}},
        {"hiwi", {{"rank", "3"}}, 6 * kOut, true, 0, {{"scale", "3"}}},
        {"hiwi", {{"on", "weight"}, {"rank", "3"}}, 6 * kIn, true, 3, {{"on", "weight"}, {"scale", "3"}}},
        {"boft",
         {{"block-size", "2"}, {"factors", "3"}},
         3 * 12 * 4 + kOut,
         true,
         0,
         {{"block-size", "0"}, {"blocks", "4"}, {"factors", "2"}}},
        {"road", {{"group-size", "8"}}, kOut, true, 0, {{"group-size", "2"}}},
        {"road",
         {{"group-size", "4"}, {"variant", "road_2"}},
         2 * kOut,
         true,
         0,
         {{"group-size", "8"}, {"variant", "road_4"}}},
        {"gralora", {{"rank", "4"}}, 4 * (kIn + kOut), true, 8, {{"rank", "3"}, {"pieces", "1"}}},
        {"gralora",
         {{"rank", "4"}, {"hybrid-rank", "1"}, {"pieces", "4"}},
         5 * (kIn + kOut),
         true,
         17,
         {{"rank", "8"}, {"pieces", "8"}}},
        {"lokr", {{"rank", "2"}}, 4 * 4 + 2 * (4 + 6), true, 16, {{"rank", "8"}}},
        {"lokr",
         {{"rank", "1"}, {"decompose-factor", "2"}, {"decompose-both", "true"}},
         4 + 8 + 12,
         true,
         16,
         {{"decompose-both", "true"}}},
        {"waveft", {{"n-frequency", "30"}}, 30, true, 16, {{"n-frequency", "63"}, {"use-idwt", "false"}}},
        {"c3a", {{"block-size", "4"}}, kIn * kOut / 4, false, 16, {{"block-size", "2"}}},
        {"hira", {{"rank", "3"}}, 3 * (kIn + kOut), true, 16, {{"dropout", "0.1"}}},
        {"shira", {{"rank", "2"}}, 2 * (kIn + kOut), true, 16, {{"rank", "1"}, {"random-seed", "5"}}},
        {"pafi", {{"budget", "17"}}, 17, true, 16, {{"budget", "0.3"}, {"mask", "largest"}}},
    };
    return all;
}

class EveryMethod : public testing::TestWithParam<Kind> {
  protected:
    const Kind& kind = GetParam();
    const nn::Linear linear{"layer", normal({kOut, kIn}, 1), normal({kOut}, 2)};
    const Tensor x = normal({7, kIn}, 3);

    static AdaptedSites on(const nn::Linear& linear, const std::string& method, const Options& options) {
        return {{linear},
                method,
                options,
                {.hidden_size = linear.in(),
                 .layers = 1,
                 .heads = linear.in() / kHeadDim,
                 .kv_heads = linear.in() / kHeadDim,
                 .head_dim = kHeadDim}};
    }
    AdaptedSites adapted = on(linear, kind.method, kind.options);
};

TEST_P(EveryMethod, Gradcheck) {
    adapted.randomise(5);
    test::NamedInputs inputs = {{"x", x.clone().requires_grad_(true)}};
    for (const auto& parameter : adapted.parameters.trained())
        if (std::none_of(kind.constant.begin(), kind.constant.end(),
                         [&](const auto& name) { return parameter.name.ends_with(name); }))
            inputs.emplace_back(parameter.name, parameter.value);
    EXPECT_TRUE(test::gradcheck([&] { return adapted.run(inputs.front().second); }, inputs));
}

TEST_P(EveryMethod, MergeIsForward) {
    adapted.randomise(5);
    const auto [weight, bias] = adapted.merged();
    EXPECT_TRUE(near(x.mm(weight.t()) + bias, adapted.run(x), 1e-12));
    EXPECT_GT(test::distance(weight, linear.weight) + test::distance(bias, linear.bias), 0.01);
}

TEST_P(EveryMethod, MergeIsForwardInFloat) {
    auto narrow =
        on({"layer", linear.weight.to(at::kFloat), linear.bias.to(at::kFloat)}, kind.method, kind.options);
    for (const auto& parameter : narrow.parameters.trained())  // of the size that training gives
        narrow.set(parameter.name, parameter.value + 0.01 * normal(parameter.value.sizes(), 4, at::kFloat));
    const auto input = x.to(at::kFloat);
    const auto [weight, bias] = narrow.merged();
    EXPECT_TRUE(near(input.mm(weight.t()) + bias, narrow.run(input), 1e-6));
}

// For all values and shapes, with other options.
TEST_P(EveryMethod, MergeIsForwardWhateverTheShape) {
    EXPECT_TRUE(rc::check([&](uint64_t seed) {
        const int64_t in = kHeadDim * *rc::gen::inRange(3, 6), out = kHeadDim * *rc::gen::inRange(1, 4);
        const nn::Linear other{"layer", normal({out, in}, seed), normal({out}, seed + 1)};
        auto fresh = on(other, kind.method, kind.other_options);
        fresh.randomise(seed + 2);
        const auto input = normal({3, in}, seed + 9);
        const auto [weight, bias] = fresh.merged();
        RC_ASSERT(bool(near(input.mm(weight.t()) + bias, fresh.run(input), 1e-11)));
    }));
}

TEST_P(EveryMethod, StartsAsTheBaseIfItSaysSo) {
    auto fresh =
        on({"layer", linear.weight.to(at::kFloat), linear.bias.to(at::kFloat)}, kind.method, kind.options);
    const auto input = x.to(at::kFloat);
    const double moved = test::distance(
        fresh.run(input), input.mm(linear.weight.to(at::kFloat).t()) + linear.bias.to(at::kFloat));
    if (kind.starts_as_base)
        EXPECT_LE(moved, 1.2e-7 * kIn);
    else
        EXPECT_GT(moved, 1e-5);
}

TEST_P(EveryMethod, TrainsSoManyValues) { EXPECT_EQ(adapted.parameters.count(), kind.trained); }

TEST_P(EveryMethod, LoraFactorsAreTheChangeOrThereAreNone) {
    adapted.randomise(5);
    if (kind.rank == 0) {
        EXPECT_FAILS(adapter, "no exact LoRA form", nn::lora_factors(adapted.forms(), linear.weight));
        return;
    }
    const auto [a, b] = nn::lora_factors(adapted.forms(), linear.weight);
    EXPECT_TRUE(near(linear.weight + b.mm(a), adapted.merged().first, 1e-12));
    EXPECT_EQ(a.size(0), kind.rank);
}

TEST_P(EveryMethod, SharesABatchWithOthersOfItsKind) {
    auto other = on(linear, kind.method, kind.options);
    adapted.randomise(5), other.randomise(50);
    const auto bank = nn::banked({adapted.forms(), other.forms()});
    const auto rows = at::tensor({1, 0, 0, 1, 1, 0, 1}, at::kInt);
    const auto expected = at::where(rows.unsqueeze(1).eq(0), adapted.run(x), other.run(x));
    EXPECT_TRUE(near(adapted.run_with(bank, x, rows), expected, 1e-12));
}

INSTANTIATE_TEST_SUITE_P(Kinds, EveryMethod, testing::ValuesIn(kinds()), [](const auto& info) {
    auto name = info.param.method == "ether+" ? "ether_plus" : info.param.method;
    if (info.param.options.size() > 1) name += "_" + info.param.options[1].first;
    std::replace(name.begin(), name.end(), '-', '_');
    return name;
});

TEST(EveryMethodOfLayers, IsTested) {
    // id3 is the base at first (Id3, below), unipelt inserts modules besides (inserted_test.cpp).
    const std::set<std::string_view> elsewhere = {"id3", "unipelt"};
    for (const auto& method : all_methods())
        EXPECT_EQ(method.takes_sites && !elsewhere.contains(method.name),
                  std::any_of(kinds().begin(), kinds().end(),
                              [&](const auto& kind) { return kind.method == method.name; }))
            << method.name;
}

// How trained values start, on a layer of 512 inputs and 256 outputs: PEFT's distributions, by their root
// mean square.
TEST(EveryMethodOfLayers, StartsAsInPeft) {
    const double uniform = 1 / std::sqrt(3.0);  // of the bound
    const std::tuple<std::string, Options, std::string, double> starts[] = {
        {"lora", {{"dora", "true"}}, "lora_A.weight", uniform / std::sqrt(512)},
        {"lora", {{"dora", "true"}}, "lora_magnitude_vector", std::sqrt(512)},  // of a normal W
        {"vera", {}, "vera_lambda_d", 0.1},
        {"delora", {}, "delora_A", uniform / std::sqrt(512)},
        {"delora", {{"lambda", "15"}}, "delora_lambda", 15},
        {"delora", {}, "delora_w_norm", 16},
        {"adalora", {}, "lora_A", 0.02},
        {"adalora", {}, "lora_B", 0.02},
        {"loha", {}, "hada_w1_a", uniform / std::sqrt(8)},
        {"loha", {}, "hada_w1_b", uniform / std::sqrt(512)},
        {"loha", {}, "hada_w2_a", uniform / std::sqrt(8)},
        {"randlora", {{"rank", "16"}}, "randlora_gamma", 1.0 / 256},
        {"vblora", {}, "vblora_logits_A", 0.1},
        {"vblora", {}, "vblora_logits_B", 0.1},
        {"fourierft", {}, "fourierft_spectrum", 1},
        {"c3a", {}, "c3a_kernel", std::sqrt(2.0 / (512 + 256))},
        {"gralora", {}, "gralora_A", uniform / std::sqrt(256)},
        {"lokr", {}, "lokr_w2_a", uniform / std::sqrt(8)},
        {"hira", {}, "hira_A", uniform / std::sqrt(512)},
    };
    const nn::Linear linear{"layer", normal({256, 512}, 1, at::kFloat), {}};
    for (const auto& [method, options, name, size] : starts) {
        AdaptedSites adapted({linear}, method, options);
        const auto value = adapted.parameters.find("layer." + name)->value.detach();
        EXPECT_NEAR(value.square().mean().sqrt().item<double>() / size, 1, 0.1) << method << " " << name;
    }
    AdaptedSites vblora({linear}, "vblora", {}), randlora({linear}, "randlora", {});
    EXPECT_LE(test::largest(vblora.parameters.find("vblora_vector_bank")->value), 0.02);
    for (const char* name : {"randlora_A", "randlora_B"})
        EXPECT_NEAR(randlora.parameters.find(name)->value.std().item<double>(), 1, 1e-5);
}

// Gradients of A and B where the norms are constants, as an automatic differentiation of the dense formula.
TEST(Dora, NormsAreConstantsInBackward) {
    const nn::Linear linear{"layer", normal({kOut, kIn}, 1), {}};
    AdaptedSites adapted({linear}, "lora", {{"rank", "3"}, {"alpha", "6"}, {"dora", "true"}});
    adapted.randomise(5);
    const auto x = normal({7, kIn}, 3), cotangent = normal({7, kOut}, 4);
    (adapted.run(x) * cotangent).sum().backward();
    std::vector<Tensor> leaves;
    for (const auto& parameter : adapted.parameters.all())
        leaves.push_back(parameter.value.detach().clone().requires_grad_(true));
    const auto sum = linear.weight + 2 * leaves[1].mm(leaves[0]);
    const auto weight = (leaves[2] / sum.detach().norm(2, {1})).unsqueeze(1) * sum;
    (x.mm(weight.t()) * cotangent).sum().backward();
    for (size_t i = 0; i < leaves.size(); ++i)
        EXPECT_TRUE(near(adapted.parameters.all()[i].value.grad(), leaves[i].grad(), 1e-12)) << i;
}

// Trained values on whole models, without their weights.
struct Published {
    std::string method;
    Options options;
    std::vector<std::pair<int64_t, int64_t>> block;  // (out, in) of its adapted layers
    int64_t layers, trained;
    nn::ModelShape shape = {};
};

void PrintTo(const Published& published, std::ostream* out) { *out << published.method; }

class Counts : public testing::TestWithParam<Published> {};

TEST_P(Counts, ArePublished) {
    const auto& [method, options, block, layers, trained, shape] = GetParam();
    std::vector<nn::Linear> linears;
    for (int64_t layer = 0; layer < layers; ++layer)
        for (size_t i = 0; i < block.size(); ++i)
            linears.push_back(
                test::shape_only(fmt::format("{}.{}", layer, i), block[i].first, block[i].second));
    EXPECT_EQ(
        AdaptedSites(linears, method, options, shape, static_cast<int64_t>(block.size())).parameters.count(),
        trained);
}

const std::vector<std::pair<int64_t, int64_t>> kLlama7bQv = {{4096, 4096}, {4096, 4096}},
                                               kLlama7bAttention(4, {4096, 4096}),
                                               kDebertaBlock = {{768, 768}, {768, 768},  {768, 768},
                                                                {768, 768}, {3072, 768}, {768, 3072}};

INSTANTIATE_TEST_SUITE_P(
    Papers, Counts,
    testing::Values(
        Published{"lora", {{"rank", "8"}}, kLlama7bQv, 32, 4194304},     // 4.19M
        Published{"lora", {{"rank", "8"}}, kDebertaBlock, 12, 1327104},  // 1.33M
        Published{"lora", {{"rank", "8"}, {"dora", "true"}}, kLlama7bQv, 32, 4194304 + 32 * 2 * 4096},
        Published{"red", {}, {{4096, 11008}}, 32, 262144},             // 0.26M
        Published{"vera", {{"rank", "256"}}, kLlama7bQv, 32, 278528},  // L (d + r) a matrix
        Published{"adalora", {{"rank", "12"}}, kDebertaBlock, 12, 1991520},
        Published{"lorta",
                  {{"rank", "4"}},
                  kLlama7bAttention,
                  32,
                  4292 * 4,
                  {.hidden_size = 4096, .layers = 32, .heads = 32, .kv_heads = 32, .head_dim = 128}},
        Published{
            "oft-paper", {{"blocks", "256"}}, kLlama7bQv, 32, 2 * 2097152},  // 2.09M, as half of R counts
        Published{"fourierft", {{"n-frequency", "1000"}}, kLlama7bQv, 32, 64000}),  // 0.064M
    [](const auto& info) {
        auto name = info.param.method + std::to_string(info.index);
        std::replace(name.begin(), name.end(), '-', '_');
        return name;
    });

}  // namespace
}  // namespace ether::methods
