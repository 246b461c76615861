// Export as LoRA: every method of the registry on tiny models, exactly, truncated or refused.
#include "ether/export/lora.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "ether/export/merge.h"
#include "ether/methods/registry.h"
#include "ether/tasks/causal_lm.h"
#include "ether/tasks/classification.h"
#include "fixture_models.h"
#include "io/test_files.h"

namespace ether::exporting {
namespace {

using test::FixtureModel;
using test::near;
using Options = std::map<std::string, std::string>;

const FixtureModel kQwen{"qwen2", nn::Head::causal_lm};  // biases, and fewer heads for keys

struct Kind {
    std::string method;
    Options options;
    FixtureModel model = test::kBert;
    int64_t rank = 0;  // of the exact LoRA; 0: there is none
};

void PrintTo(const Kind& kind, std::ostream* out) {
    *out << kind.method << " on " << kind.model.name;
    for (const auto& [name, value] : kind.options) *out << " " << name << "=" << value;
}

// An adapter as trained: every value moved, so that no side or layer is the identity.
eval::LoadedAdapter loaded(const Kind& kind, std::vector<std::string> modules_to_save = {},
                           const std::string& targets = "") {
    const auto checkpoint = io::Checkpoint::open(kind.model.path());
    eval::LoadedAdapter result{.checkpoint = checkpoint, .base = io::BaseWatch(checkpoint)};
    result.model = std::make_unique<methods::AdaptedModel>(
        kind.model.load(), methods::AdapterConfig{.method = kind.method,
                                                  .options = kind.options,
                                                  .targets = {.modules = targets},
                                                  .modules_to_save = std::move(modules_to_save)});
    if (kind.model.classifies())
        result.task =
            std::make_unique<tasks::Classification>(data::LabelSet::from_names({"a", "b", "c"}, ""));
    else
        result.task = std::make_unique<tasks::CausalLm>();
    result.max_length = 16;
    uint64_t seed = 7;
    const at::NoGradGuard no_grad;
    for (const auto& parameter : result.model->parameters().all())
        if (parameter.trained)
            parameter.value.add_(0.05 * test::normal(parameter.value.sizes(), seed++, at::kFloat));
    return result;
}

eval::LoadedAdapter read_back(const Kind& kind, const std::filesystem::path& folder) {
    return eval::load_adapter({.model = kind.model.path().string(), .adapter = folder.string()});
}

std::map<std::string, at::Tensor> merged(const eval::LoadedAdapter& adapter) {
    std::map<std::string, at::Tensor> tensors;
    for (auto& [name, tensor] : adapter.model->merged_tensors(at::kFloat)) tensors[name] = tensor;
    return tensors;
}

std::vector<Kind> low_rank_kinds() {
    std::vector<Kind> all = {
        {"hra", {{"rank", "4"}}, test::kBert, 4},
        {"hra", {{"rank", "3"}, {"apply-gs", "true"}}, test::kLlamaTied, 3},
        {"lora", {{"rank", "3"}, {"rslora", "true"}}, kQwen, 3},
        {"vera", {{"rank", "5"}}, test::kBert, 5},
        {"delora", {{"rank", "3"}}, test::kLlamaTied, 3},
        {"adalora", {{"rank", "3"}}, test::kBert, 3},
        {"lorta", {{"rank", "3"}}, kQwen, 3},
        {"loha", {{"rank", "2"}}, test::kBert, 4},
        {"randlora",
         {{"rank", "5"}, {"alpha", "16"}},
         test::kBert,
         32},  // 35 of which no layer needs more than its width
        {"vblora", {{"rank", "2"}, {"num-vectors", "6"}, {"vector-length", "4"}}, test::kBert, 2},
        {"fourierft", {{"n-frequency", "30"}, {"scaling", "1"}}, test::kBert, 26},
        {"miss", {{"rank", "5"}}, test::kLlamaTied, 5},
        {"gralora", {{"rank", "4"}}, test::kBert, 8},
        {"lokr", {{"rank", "2"}}, test::kBert, 8},
        {"waveft", {{"n-frequency", "30"}, {"scaling", "1"}}, test::kBert, 17},
        {"c3a", {{"block-size", "4"}}, test::kBert, 32},
        {"hira", {{"rank", "3"}}, test::kBert, 32},
        {"shira", {{"rank", "2"}}, kQwen, 32},
        {"pafi", {{"budget", "0.1"}}, test::kBert, 32},
    };
    for (const auto& [method, terms] : {std::pair{"ether", 1}, std::pair{"ether+", 2}})
        for (const auto& [side, sides] :
             {std::pair{"input", 1}, std::pair{"output", 1}, std::pair{"both", 2}})
            for (const auto& [blocks, n] : {std::pair{"1", 1}, std::pair{"2", 2}, std::pair{"8", 8}})
                all.push_back({method,
                               {{"side", side}, {"blocks", blocks}},
                               test::kBert,
                               std::min(32, terms * sides * n)});
    all.push_back({"ether", {{"blocks", "2"}, {"layout", "official"}}, test::kLlamaTied, 4});
    all.push_back({"ether+", {{"blocks", "4"}}, kQwen, 16});
    return all;
}

const std::vector<Kind> kRefused = {
    {"oft", {{"block-size", "4"}}},   {"naive", {{"blocks", "4"}}},
    {"boft", {{"block-size", "4"}}},  {"road", {{"group-size", "8"}}, {"llama_bare", nn::Head::causal_lm}},
    {"lora", {{"dora", "true"}}},     {"ia3", {}, {"llama_bare", nn::Head::causal_lm}},
    {"oft-paper", {{"blocks", "4"}}}, {"magnitude", {}},
};
const std::vector<Kind> kNoWeights = {{"red", {}},
                                      {"hiwi", {}},
                                      {"bitfit", {}},
                                      {"ln-tuning", {}},
                                      {"full", {}},
                                      {"head", {}},
                                      {"ia3", {}},
                                      {"lora", {{"bias", "all"}}},
                                      {"lora", {{"token-indices", "3"}}},
                                      {"trainable-tokens", {{"token-indices", "3,9"}}}};

const std::vector<Kind> kInserting = {{"bottleneck", {}}, {"prefix", {}}, {"unipelt", {}}};

class Exact : public testing::TestWithParam<Kind> {};

TEST_P(Exact, IsTheMergedModel) {
    const auto& kind = GetParam();
    auto adapter = loaded(kind);
    const auto expected = merged(adapter);
    const test::TempFolder folder;
    const auto report = export_lora(adapter, folder / "lora", {.base = "base"});
    EXPECT_EQ(report.rank, kind.rank);
    EXPECT_TRUE(report.exact());
    EXPECT_EQ(report.error, 0);
    EXPECT_GT(report.adapter_effect, 1e-3);
    EXPECT_NEAR(*report.retained, 1, 1e-4);
    EXPECT_LE(report.largest_difference, 1e-5 * std::max(1.0, report.largest_logit));

    const auto again = read_back(kind, folder / "lora");
    EXPECT_EQ(again.model->method_name(), "lora");
    EXPECT_EQ(again.max_length, 16);
    const auto found = merged(again);
    ASSERT_EQ(found.size(), expected.size());
    for (const auto& [name, tensor] : expected) EXPECT_TRUE(near(found.at(name), tensor, 2e-6)) << name;
}

INSTANTIATE_TEST_SUITE_P(Kinds, Exact, testing::ValuesIn(low_rank_kinds()));

class Refused : public testing::TestWithParam<Kind> {};

TEST_P(Refused, UnlessTheNearestIsAskedFor) {
    const auto& kind = GetParam();
    auto adapter = loaded(kind);
    const test::TempFolder folder;
    EXPECT_FAILS(adapter, "--svd --max-rank R writes the nearest",
                 export_lora(adapter, folder / "lora", {.base = "base"}));
    EXPECT_FAILS(adapter, "--svd --max-rank R writes the nearest",
                 export_lora(adapter, folder / "lora", {.base = "base", .max_rank = 2}));
    EXPECT_FAILS(usage, "--svd: needs --max-rank",
                 export_lora(adapter, folder / "lora", {.base = "base", .svd = true}));
    EXPECT_TRUE(std::filesystem::is_empty(folder.path()));

    auto base = merged({.checkpoint = adapter.checkpoint,
                        .base = adapter.base,
                        .model = std::make_unique<methods::AdaptedModel>(
                            kind.model.load(), methods::AdapterConfig{.method = "head"})});
    const auto expected = merged(adapter);
    const auto nearest = export_lora(adapter, folder / "two", {.base = "base", .max_rank = 2, .svd = true});
    EXPECT_EQ(nearest.rank, 2);
    EXPECT_FALSE(nearest.exact());
    const auto found = merged(read_back(kind, folder / "two"));
    double square = 0, lost_square = 0, largest = 0;
    for (const auto* site : adapter.model->sites()) {
        const auto name = site->name() + ".weight";
        const auto change = (expected.at(name) - base.at(name)).to(at::kDouble);
        const auto squares = at::linalg_svdvals(change).square();
        const double all = squares.sum().item<double>(),
                     tail = squares.narrow(0, 2, squares.size(0) - 2).sum().item<double>();
        square += all, lost_square += tail, largest = std::max(largest, std::sqrt(tail / all));
        const double lost =
            (found.at(name).to(at::kDouble) - expected.at(name)).square().sum().item<double>();
        EXPECT_NEAR(std::sqrt(lost / all), std::sqrt(tail / all), 1e-4) << name;
    }
    EXPECT_NEAR(nearest.error, std::sqrt(lost_square / square), 1e-5);
    EXPECT_NEAR(nearest.largest_error, largest, 1e-5);

    const auto all = export_lora(adapter, folder / "all", {.base = "base", .max_rank = 64, .svd = true});
    EXPECT_TRUE(all.exact());
    EXPECT_NEAR(all.error, 0, 1e-12);
}

INSTANTIATE_TEST_SUITE_P(Kinds, Refused, testing::ValuesIn(kRefused));

class NoWeights : public testing::TestWithParam<Kind> {};

TEST_P(NoWeights, AreForMerging) {
    auto adapter = loaded(GetParam());
    const test::TempFolder folder;
    EXPECT_FAILS(adapter, "ether merge writes a whole model",
                 export_lora(adapter, folder / "lora", {.base = "base", .max_rank = 2, .svd = true}));
    EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

INSTANTIATE_TEST_SUITE_P(Kinds, NoWeights, testing::ValuesIn(kNoWeights));

TEST(Export, InsertedModulesAreForUseAsTheyAre) {
    for (const auto& kind : kInserting) {
        auto adapter = loaded(kind);
        const test::TempFolder folder;
        EXPECT_FAILS(adapter, "inserts modules, which no LoRA holds",
                     export_lora(adapter, folder / "lora", {.base = "base"}));
    }
}

TEST(Export, KnowsEveryMethod) {
    for (const auto& method : methods::all_methods()) {
        const auto lists = [&](const auto& kinds) {
            return std::any_of(kinds.begin(), kinds.end(),
                               [&](const Kind& kind) { return kind.method == method.name; });
        };
        EXPECT_TRUE(lists(low_rank_kinds()) || lists(kRefused) || lists(kNoWeights) || lists(kInserting) ||
                    std::string_view(method.name) == "id3")  // chooses its weights in training, then as pafi
            << method.name;
    }
}

TEST(Export, LayersOfAnotherRankEndInZeros) {
    // 36 rows at most, of which a layer of 16 outputs needs 16.
    const Kind kind{"ether+", {{"blocks", "8"}}, test::kLlamaTied};
    auto adapter = loaded(kind);
    int64_t least = 1000, most = 0;
    for (const auto* site : adapter.model->sites()) {
        const int64_t rank = std::min({int64_t{32}, site->linear.in(), site->linear.out()});
        least = std::min(least, rank), most = std::max(most, rank);
    }
    ASSERT_LT(least, most);
    const test::TempFolder folder;
    EXPECT_EQ(export_lora(adapter, folder / "lora", {.base = "base"}).rank, most);
    const auto files = io::read_adapter(folder / "lora");
    EXPECT_EQ(files.config["r"], most);
    EXPECT_EQ(files.config["lora_alpha"], most);
    EXPECT_EQ(files.config["base_model_name_or_path"], "base");
    int64_t zero_rows = 0;
    for (const auto& [name, tensor] : files.tensors) {
        EXPECT_EQ(tensor.size(name.ends_with("lora_A.weight") ? 0 : 1), most) << name;
        EXPECT_EQ(tensor.scalar_type(), at::kFloat);
        if (name.ends_with("lora_A.weight")) zero_rows += tensor.eq(0).all(1).sum().item<int64_t>();
    }
    EXPECT_GT(zero_rows, 0);
}

TEST(Export, TruncatesEachLayerToItsNearest) {
    const Kind kind{"ether+", {{"blocks", "4"}}};
    auto adapter = loaded(kind);
    const auto expected = merged(adapter);
    const test::TempFolder folder;
    double before = 1;
    for (const int64_t rank : {4, 8, 12, 15}) {
        const auto report =
            export_lora(adapter, folder / std::to_string(rank), {.base = "base", .max_rank = rank});
        EXPECT_EQ(report.rank, rank);
        EXPECT_EQ(report.exact_rank, 16);
        EXPECT_LT(report.error, before);
        EXPECT_GE(report.largest_error, report.error);
        EXPECT_FALSE(report.largest_error_layer.empty());
        before = report.error;
    }
    const auto whole = export_lora(adapter, folder / "16", {.base = "base", .max_rank = 16});
    EXPECT_TRUE(whole.exact());
    EXPECT_EQ(whole.error, 0);
    for (const auto& [name, tensor] : merged(read_back(kind, folder / "16")))
        EXPECT_TRUE(near(tensor, expected.at(name), 2e-6)) << name;
}

TEST(Export, TakesModulesThatWereTrainedWholeAlong) {
    const Kind kind{"ether", {}, test::kBert};
    auto adapter = loaded(kind, {"classifier"});
    const auto expected = merged(adapter).at("classifier.weight");
    const test::TempFolder folder;
    EXPECT_TRUE(export_lora(adapter, folder / "lora", {.base = "base"}).warnings.empty());
    const auto again = read_back(kind, folder / "lora");
    EXPECT_TRUE(at::equal(merged(again).at("classifier.weight"), expected));
    EXPECT_EQ(io::read_adapter(folder / "lora").config["modules_to_save"], nlohmann::json({"classifier"}));
}

TEST(Export, WarnsOfWhatServersDoNotTake) {
    const auto warnings = [](const Kind& kind, int64_t max_rank = 0, std::vector<std::string> whole = {}) {
        auto adapter = loaded(kind, std::move(whole));
        const test::TempFolder folder;
        const auto report = export_lora(adapter, folder / "lora", {.base = "base", .max_rank = max_rank});
        return fmt::format("{}", fmt::join(report.warnings, "\n"));
    };
    EXPECT_EQ(warnings({"lora", {{"rank", "16"}}}), "");
    EXPECT_NE(warnings({"lora", {{"rank", "17"}}}).find("of rank 17 with --max-lora-rank 32"),
              std::string::npos);
    EXPECT_EQ(warnings({"lora", {{"rank", "17"}}}, 16), "");
    EXPECT_NE(warnings({"ether", {{"blocks", "2"}}, test::kLlamaTied}, 0, {"model.norm"})
                  .find("model.norm was trained"),
              std::string::npos);
}

TEST(Export, ChangesNothingWhereTheAdapterDoesNot) {
    const Kind kind{"adalora", {{"rank", "2"}}};
    auto adapter = loaded(kind);
    for (const auto& parameter : adapter.model->parameters().all())
        if (parameter.name.ends_with("lora_E")) parameter.value.detach().zero_();
    const test::TempFolder folder;
    const auto report = export_lora(adapter, folder / "lora", {.base = "base", .max_rank = 1});
    EXPECT_EQ(report.error, 0);
    EXPECT_EQ(report.adapter_effect, 0);
    EXPECT_EQ(report.largest_difference, 0);
}

TEST(Export, ALayerMayHaveNothingLeft) {
    const Kind kind{"adalora", {{"rank", "2"}}};
    auto adapter = loaded(kind);
    auto files = adapter.model->files("base");
    const std::string site = adapter.model->sites().front()->name();
    files.config["rank_pattern"] = {{site + ".lora_E", {false, false}}};
    for (auto& [name, tensor] : files.tensors)
        if (name.find(site + ".lora_") != std::string::npos)
            tensor = tensor.narrow(name.ends_with("lora_B") ? 1 : 0, 0, 0);
    adapter.model = std::make_unique<methods::AdaptedModel>(kind.model.load(), files);
    const auto expected = merged(adapter);
    for (const int64_t rank : {0, 1, 2}) {
        const test::TempFolder folder;
        const auto report = export_lora(adapter, folder / "lora", {.base = "base", .max_rank = rank});
        EXPECT_EQ(report.exact(), rank != 1);
        const auto found = merged(read_back(kind, folder / "lora")).at(site + ".weight");
        EXPECT_TRUE(at::equal(found, expected.at(site + ".weight")));
    }
}

TEST(Export, RefusesAFolderThatExists) {
    auto adapter = loaded({"ether", {}});
    const test::TempFolder folder;
    std::filesystem::create_directory(folder / "lora");
    test::write_raw(folder / "lora" / "mine.txt", "mine");
    EXPECT_FAILS(file, "exists and is not empty", export_lora(adapter, folder / "lora", {.base = "base"}));
}

TEST(Export, InBfloat16StaysWithinItsRounding) {
    const Kind kind{"ether+", {{"blocks", "2"}}, test::kLlamaTied};
    auto adapter = loaded(kind);
    eval::LoadedAdapter narrow{.checkpoint = adapter.checkpoint,
                               .base = adapter.base,
                               .task = std::move(adapter.task),
                               .max_length = 16};
    narrow.model =
        std::make_unique<methods::AdaptedModel>(kind.model.load(at::kBFloat16), adapter.model->files("base"));
    const test::TempFolder folder;
    const auto report = export_lora(narrow, folder / "lora", {.base = "base"});
    EXPECT_GT(report.largest_difference, 0);
    EXPECT_LE(report.largest_difference, report.tolerance(/*float32=*/false));
}

// The base that a merge is compared with is the one in its folder, whatever was trained in place.
TEST(Merge, KnowsTheEffectOfWhatIsTrainedInPlace) {
    for (const char* method : {"bitfit", "ln-tuning", "full", "lora"}) {
        const test::TempFolder folder;
        auto adapter = loaded({method, {}, test::kBert, 0});
        const auto report = merge(adapter, folder / "merged", at::kFloat);
        EXPECT_GT(report.adapter_effect, 1e-3) << method;
        EXPECT_NEAR(report.retained.value_or(0), 1, 1e-4) << method;
        EXPECT_LT(report.distance.value_or(1), 1e-3) << method;
    }
}

// In float32 an adapter that has hardly begun is no reason to refuse; bfloat16 loses it.
TEST(Merge, RefusesWhatBfloat16Loses) {
    const test::TempFolder folder;
    auto adapter = loaded({"bitfit", {}, test::kBert, 0});
    const auto base = test::kBert.load();
    const at::NoGradGuard no_grad;
    for (const auto& [name, slots] : base->tensors())
        for (const auto& parameter : adapter.model->parameters().all())
            if (parameter.value.is_same(*adapter.model->model().tensors().at(name).front()))
                parameter.value.copy_(*slots.front())
                    .add_(1e-7 * test::normal(parameter.value.sizes(), 3, at::kFloat));
    EXPECT_FAILS(numeric, "--dtype f32 retains all", merge(adapter, folder / "merged", at::kBFloat16));
    EXPECT_FALSE(std::filesystem::exists(folder / "merged"));
    EXPECT_GT(merge(adapter, folder / "merged", at::kFloat).adapter_effect, 0);
}

// Bits that were written well do not make a model that computes the same.
TEST(Export, AResultOfOtherLogitsIsRefused) {
    const test::TempFolder folder;
    const auto model = folder / "model";
    std::filesystem::copy(test::kBert.path(), model);
    auto config = nlohmann::json::parse(test::read_raw(model / "config.json"));
    config["hidden_act"] = "relu";
    test::write_raw(model / "config.json", config.dump());
    auto adapter = loaded({"ether+", {}, test::kBert, 0});
    adapter.checkpoint = io::Checkpoint::open(model);
    EXPECT_FAILS(numeric, "the merged model's logits differ from the adapter's by",
                 merge(adapter, folder / "merged", at::kFloat));
    EXPECT_FAILS(numeric, "the LoRA's logits differ from the adapter's by",
                 export_lora(adapter, folder / "lora", {}));
    EXPECT_FALSE(std::filesystem::exists(folder / "merged"));
    EXPECT_FALSE(std::filesystem::exists(folder / "lora"));
}

}  // namespace
}  // namespace ether::exporting
