// ETHER and ETHER+: the published code's numbers (tests/fixtures/official/ether), the paper's properties and
// counts.
#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "io/test_files.h"
#include "methods/official.h"
#include "methods/sites_model.h"

namespace ether::methods {
namespace {

namespace fs = std::filesystem;
using at::Tensor;
using test::AdaptedSites;
using test::flat;
using test::kOfficial;
using test::near;
using test::normal;
using test::tensor_of;

Tensor indices_of(const nlohmann::json& list) {
    const auto values = list.get<std::vector<int64_t>>();
    return at::tensor(at::ArrayRef<int64_t>(values), at::kLong);
}

std::vector<fs::path> fixtures(const std::string& prefix) {
    std::vector<fs::path> found;
    for (const auto& entry : fs::directory_iterator("tests/fixtures/official/ether"))
        if (entry.path().filename().string().starts_with(prefix)) found.push_back(entry.path());
    std::sort(found.begin(), found.end());
    return found;
}

std::string name_of(const testing::TestParamInfo<fs::path>& info) { return info.param.stem().string(); }

class Official : public testing::TestWithParam<fs::path> {
  protected:
    Official() {
        json = test::official(GetParam());
        config = json["config"];
    }
    Tensor parameter(const std::string& name) const { return tensor_of(json["parameters"].at(name)); }
    bool has(const std::string& name) const { return json["parameters"].contains(name); }
    bool plus() const { return has_type("etherplus"); }
    bool both() const { return has_type("HH"); }

    // The side and, for one official tensor name, our key.
    AdaptedSites adapt(const nn::Linear& linear, const std::string& side) const {
        return AdaptedSites(
            {linear}, plus() ? "ether+" : "ether",
            {{"side", side}, {"layout", "official"}, {"blocks", std::to_string(config["n"].get<int>())}});
    }
    // Gives an adapter's parameter the official values; remembers it so that its gradient can be compared.
    void set(const AdaptedSites& adapted, const std::string& ours, const std::string& official) {
        const auto* target = adapted.parameters.find("layer." + ours);
        leaves.emplace_back(official,
                            adapted.set("layer." + ours, parameter(official).view_as(target->value)));
    }
    void expect_gradients(const Tensor& x) const {
        EXPECT_TRUE(near(x.grad(), tensor_of(json["gradients"]["x"]), kOfficial));
        for (const auto& [name, leaf] : leaves)
            EXPECT_TRUE(near(leaf.grad(), tensor_of(json["gradients"][name]).view_as(leaf), kOfficial))
                << name;
        EXPECT_EQ(leaves.size() + 1, json["gradients"].size());
    }
    Tensor input() const { return tensor_of(json["inputs"]["x"]).requires_grad_(true); }
    void backward(const Tensor& y) const {
        (y * flat(tensor_of(json["inputs"]["cotangent"]))).sum().backward();
    }

    nlohmann::json json, config;
    std::vector<std::pair<std::string, Tensor>> leaves;

  private:
    bool has_type(const char* part) const {
        return config["Htype"].get<std::string>().find(part) != std::string::npos;
    }
};

using OfficialLinear = Official;

TEST_P(OfficialLinear, OutputMergeAndGradients) {
    const bool flip = config.value("flip_side", false) && !both();
    const nn::Linear linear{"layer", parameter("weight"), has("bias") ? parameter("bias") : Tensor()};
    auto adapted = adapt(linear, both() ? "both" : flip ? "output" : "input");
    const std::string first = flip ? "ether_out_" : "ether_";
    set(adapted, first + "u", "ether_R");
    if (plus()) set(adapted, first + "v", "ether_R2");
    if (both()) set(adapted, "ether_out_u", "ether_R3"), set(adapted, "ether_out_v", "ether_R4");

    const auto x = input();
    auto used = x;
    if (json["inputs"].contains("dropout_multiplier"))
        used = x * tensor_of(json["inputs"]["dropout_multiplier"]);
    const auto y = adapted.run(flat(used));
    EXPECT_TRUE(near(y, flat(tensor_of(json["outputs"]["y"])), kOfficial));
    if (json["outputs"].contains("merged_weight")) {
        EXPECT_TRUE(near(adapted.merged().first, tensor_of(json["outputs"]["merged_weight"]), kOfficial));
    }
    backward(y);
    expect_gradients(x);
}

INSTANTIATE_TEST_SUITE_P(Fixtures, OfficialLinear, testing::ValuesIn(fixtures("linear_")), name_of);

using OfficialQkv = Official;

// One fused matrix there; here one site for each of q, k, v that is adapted.
TEST_P(OfficialQkv, OutputMergeAndGradients) {
    const auto weight = parameter("weight"), bias = has("bias") ? parameter("bias") : Tensor();
    const auto x = input();
    auto y = flat(x).mm(weight.t());
    if (bias.defined()) y = y + bias;
    auto merged = weight.clone();
    std::vector<std::unique_ptr<AdaptedSites>> kept;
    for (const std::string letter : {"q", "k", "v"}) {
        const auto rows = indices_of(config[letter + "_ind"]);
        if (rows.numel() == 0) continue;
        const nn::Linear linear{"layer", weight.index_select(0, rows),
                                bias.defined() ? bias.index_select(0, rows) : bias};
        auto& adapted = *kept.emplace_back(new AdaptedSites(adapt(linear, both() ? "both" : "output")));
        set(adapted, "ether_out_u", "ether_R" + letter);
        if (plus()) set(adapted, "ether_out_v", "ether_R2" + letter);
        if (both())
            set(adapted, "ether_u", "ether_R3" + letter), set(adapted, "ether_v", "ether_R4" + letter);
        y = y.index_copy(1, rows, adapted.run(flat(x)));
        merged.index_copy_(0, rows, adapted.merged().first);
    }
    EXPECT_TRUE(near(y, flat(tensor_of(json["outputs"]["y"])), kOfficial));
    EXPECT_TRUE(near(merged, tensor_of(json["outputs"]["merged_weight"]), kOfficial));
    backward(y);
    expect_gradients(x);
}

INSTANTIATE_TEST_SUITE_P(Fixtures, OfficialQkv, testing::ValuesIn(fixtures("qkv_")), name_of);

// Every combination of method, side, layout and n, on a layer of 24 inputs and 16 outputs.
struct Kind {
    std::string method, side, layout;
    int64_t blocks;
    bool plus() const { return method == "ether+"; }
    int64_t terms() const { return plus() ? 2 : 1; }
};

void PrintTo(const Kind& kind, std::ostream* out) {
    *out << kind.method << " " << kind.side << " " << kind.layout << " n=" << kind.blocks;
}

std::vector<Kind> kinds() {
    std::vector<Kind> all;
    for (const char* method : {"ether", "ether+"})
        for (const char* side : {"input", "output", "both"})
            for (const char* layout : {"block-diagonal", "official"})
                for (const int64_t blocks : {1, 2, 8}) all.push_back({method, side, layout, blocks});
    return all;
}

class Reflections : public testing::TestWithParam<Kind> {
  protected:
    const Kind kind = GetParam();
    const nn::Linear linear{"layer", normal({16, 24}, 1), normal({16}, 2)};
    AdaptedSites adapted = make({linear});
    AdaptedSites make(const std::vector<nn::Linear>& linears) const {
        return {linears,
                kind.method,
                {{"side", kind.side}, {"layout", kind.layout}, {"blocks", std::to_string(kind.blocks)}}};
    }
};

TEST_P(Reflections, MergeIsForward) {
    adapted.randomise(5);
    const auto x = normal({7, 24}, 3);
    const auto [weight, bias] = adapted.merged();
    EXPECT_TRUE(near(x.mm(weight.t()) + bias, adapted.run(x), 1e-12));
    EXPECT_GT(test::distance(weight, linear.weight), 0.01);
}

TEST_P(Reflections, LoraFactorsAreTheChange) {
    adapted.randomise(5);
    const auto [a, b] = nn::lora_factors(adapted.forms(), linear.weight);
    EXPECT_TRUE(near(linear.weight + b.mm(a), adapted.merged().first, 1e-12));
    const int64_t n = kind.blocks, smaller = std::min(linear.in(), linear.out());
    const int64_t input =
        kind.layout == "official" ? std::min(kind.terms() * n * n, smaller) : kind.terms() * n;
    const int64_t rank = (kind.side != "output" ? input : 0) + (kind.side != "input" ? kind.terms() * n : 0);
    EXPECT_EQ(a.size(0), rank);
    EXPECT_EQ(b.size(1), rank);
}

TEST_P(Reflections, PlusStartsAsTheIdentity) {
    const auto narrow = nn::Linear{"layer", linear.weight.to(at::kFloat), linear.bias.to(at::kFloat)};
    auto fresh = make({narrow});
    const auto x = normal({7, 24}, 3, at::kFloat);
    const double moved = test::distance(fresh.run(x), x.mm(narrow.weight.t()) + narrow.bias);
    if (kind.plus())
        EXPECT_LE(moved, 1.2e-7 * 24);
    else
        EXPECT_GT(moved, 0.01);
}

TEST_P(Reflections, StartingValues) {  // tests/fixtures/official/ether: bound 1/sqrt(d/n), v = -u
    for (const auto& parameter : adapted.parameters.all()) {
        const double bound = 1 / std::sqrt(static_cast<double>(parameter.value.size(1)));
        EXPECT_LE(test::largest(parameter.value), bound);
        EXPECT_GT(test::largest(parameter.value), 0.7 * bound) << "of some 20 uniform values";
        if (!parameter.name.ends_with("_v")) continue;
        const auto u = parameter.name.substr(0, parameter.name.size() - 1) + "u";
        EXPECT_TRUE(at::equal(parameter.value, -adapted.parameters.find(u)->value));
    }
}

INSTANTIATE_TEST_SUITE_P(Kinds, Reflections, testing::ValuesIn(kinds()));

TEST(Ether, IsItsOwnInverseAndKeepsNorms) {
    for (const char* n : {"1", "2", "3", "12"}) {
        const auto eye = at::eye(24, at::kDouble);
        AdaptedSites adapted({{"layer", eye, {}}}, "ether", {{"blocks", n}});
        adapted.randomise(7);
        const auto x = normal({9, 24}, 3);
        EXPECT_TRUE(near(adapted.run(adapted.run(x)), x, 1e-14));
        EXPECT_TRUE(near(adapted.run(x).norm(2, {-1}), x.norm(2, {-1}), 1e-14));
        // It never is the identity: the distance is 2 sqrt(n).
        EXPECT_NEAR((adapted.merged().first - eye).norm().item<double>(), 2 * std::sqrt(std::stod(n)), 1e-12);
    }
}

TEST(EtherPlus, StaysNearTheIdentity) {
    const auto eye = at::eye(24, at::kDouble);
    double furthest = 0;
    for (uint64_t seed = 0; seed < 200; ++seed) {
        for (const int n : {1, 2, 12}) {
            AdaptedSites adapted({{"layer", eye, {}}}, "ether+",
                                 {{"blocks", std::to_string(n)}, {"side", "input"}});
            adapted.randomise(100 * seed);
            const double distance = (adapted.merged().first - eye).norm().item<double>();
            ASSERT_LE(distance, std::sqrt(2.0 * n) * (1 + 1e-12)) << "seed " << seed;
            furthest = std::max(furthest, distance / std::sqrt(2.0 * n));
        }
    }
    EXPECT_GT(furthest, 0.95);  // the bound is sharp
}

int64_t count(const std::vector<nn::Linear>& layer, int64_t layers, const std::string& method) {
    std::vector<nn::Linear> all;
    for (int64_t i = 0; i < layers; ++i)
        for (auto linear : layer) {
            linear.name = fmt::format("{}.{}", i, linear.name);
            all.push_back(linear);
        }
    return AdaptedSites(all, method, {}).parameters.count();
}

TEST(Counts, AreThePapers) {
    const std::vector<nn::Linear> llama2_7b = {test::shape_only("q", 4096, 4096),
                                               test::shape_only("v", 4096, 4096)};
    EXPECT_EQ(count(llama2_7b, 32, "ether"), 262144);
    EXPECT_EQ(count(llama2_7b, 32, "ether+"), 1048576);
    const std::vector<nn::Linear> deberta_v3_base = {
        test::shape_only("q", 768, 768),    test::shape_only("k", 768, 768),
        test::shape_only("v", 768, 768),    test::shape_only("o", 768, 768),
        test::shape_only("fc1", 3072, 768), test::shape_only("fc2", 768, 3072)};
    EXPECT_EQ(count(deberta_v3_base, 12, "ether"), 82944);
    EXPECT_EQ(count(deberta_v3_base, 12, "ether+"), 331776);
}

TEST(Ether, NamesTheLayerThatBlocksDoNotDivide) {
    const std::vector<nn::Linear> linears = {{"encoder.fine", at::ones({4, 8}), {}},
                                             {"encoder.odd", at::ones({4, 6}), {}}};
    EXPECT_FAILS(usage, "--blocks: 4 does not divide the input width 6 of encoder.odd",
                 AdaptedSites(linears, "ether", {{"blocks", "4"}}));
    EXPECT_FAILS(usage, "output width 4 of encoder.fine",
                 AdaptedSites(linears, "ether", {{"blocks", "8"}, {"side", "output"}}));
    EXPECT_FAILS(usage, "blocks", AdaptedSites(linears, "ether", {{"blocks", "0"}}));
}

TEST(Ether, BlockDropoutLeavesBlocksAlone) {
    const auto eye = at::eye(32, at::kDouble);
    AdaptedSites adapted({{"layer", eye, {}}}, "ether", {{"blocks", "8"}, {"block-dropout", "0.5"}});
    adapted.randomise(1);
    const data::Batch none;
    const auto x = normal({1, 32}, 3);
    double identities = 0;
    for (uint64_t seed = 0; seed < 200; ++seed) {
        auto& site = adapted.model.sites().front();
        const nn::Pass pass{.batch = none, .training = true, .random = Random(seed)};
        adapted.adapter->begin_pass(pass);
        site.forms = adapted.adapter->forms(site, pass);
        const auto moved = (site(x, pass) - x).view({8, 4}).abs().amax(1).gt(1e-12);
        identities += 8 - moved.sum().item<double>();
    }
    EXPECT_NEAR(identities / 1600, 0.5, 5 * 0.5 / 40);  // five standard deviations
    EXPECT_EQ(adapted.merged().first.ne(eye).any(1).sum().item<int64_t>(),
              32);  // none dropped outside of training
}

}  // namespace
}  // namespace ether::methods
