// Every architecture against transformers: logits and gradients of tests/fixtures/make_models.py's tiny
// models.
#include <gtest/gtest.h>

#include <set>

#include "ether/core/error.h"
#include "ether/models/registry.h"
#include "fixture_models.h"
#include "io/test_files.h"

namespace ether::models {
namespace {

namespace fs = std::filesystem;
using at::Tensor;
using test::FixtureModel;
using test::near;

class Models : public testing::TestWithParam<FixtureModel> {
  protected:
    const FixtureModel& fixture = GetParam();
    const io::SafetensorsFile expected = fixture.expected();

    Tensor row(const Tensor& logits, const data::Batch& batch, int64_t i) const {
        if (fixture.classifies()) return logits[i];
        const auto begin = batch.cu_seqlens[i].item<int64_t>(), end = batch.cu_seqlens[i + 1].item<int64_t>();
        return logits.narrow(0, begin, end - begin);
    }
};

TEST_P(Models, LogitsAgree) {
    for (const auto& [dtype, tolerance] : {std::pair{at::kFloat, 1e-5}, {at::kDouble, 1e-6}}) {
        const auto model = fixture.load(dtype);
        const auto batch = fixture.batch();
        const auto logits = model->logits({.batch = batch});
        EXPECT_EQ(logits.scalar_type(), dtype);
        for (int64_t i = 0; i < batch.size(); ++i)
            EXPECT_TRUE(near(row(logits, batch, i), expected.tensor(fmt::format("logits.{}", i)), tolerance))
                << "row " << i;
    }
}

TEST_P(Models, RowsDoNotSeeEachOther) {
    const auto model = fixture.load(at::kDouble);
    for (int64_t i = 0; i < 4; ++i) {
        const auto batch = fixture.batch({i});
        EXPECT_TRUE(near(row(model->logits({.batch = batch}), batch, 0),
                         expected.tensor(fmt::format("logits.{}", i)), 1e-6));
    }
}

TEST_P(Models, BfloatFollows) {
    const auto model = fixture.load(at::kBFloat16);
    const auto batch = fixture.batch();
    const auto logits = model->logits({.batch = batch});
    EXPECT_EQ(logits.scalar_type(), at::kBFloat16);
    for (int64_t i = 0; i < batch.size(); ++i)  // some 20 roundings of 2^-9 on the way
        EXPECT_TRUE(near(row(logits, batch, i), expected.tensor(fmt::format("logits.{}", i)), 0.1))
            << "row " << i;
}

TEST_P(Models, GradientsAgree) {
    for (const auto& [dtype, tolerance] : {std::pair{at::kFloat, 1e-5}, {at::kDouble, 1e-6}}) {
        const auto model = fixture.load(dtype);
        const auto batch = fixture.batch();
        std::map<std::string, Tensor> trained;
        for (const auto& name : expected.names())
            if (name.starts_with("gradient/")) {
                const auto parameter = name.substr(9);
                trained[parameter] = model->tensors().at(parameter).front()->clone().requires_grad_(true);
                model->replace(parameter, trained[parameter]);
            }
        ASSERT_GE(trained.size(), 10U);
        const auto loss = fixture.loss(model->logits({.batch = batch}), batch);
        EXPECT_TRUE(near(loss.view({1}), expected.tensor("loss"), tolerance));
        loss.backward();
        for (const auto& [name, tensor] : trained) {
            const auto reference = expected.tensor("gradient/" + name);
            // The gradients are small: compare relative to the largest entry of each. That of BERT's key
            // biases is none but for rounding, since softmax takes no notice of them.
            const double least = name.ends_with("key.bias") ? 2e-3 : 1e-3;
            const double scale = 1 / std::max(test::largest(reference), least);
            EXPECT_TRUE(near(tensor.grad() * scale, reference * scale, tolerance)) << name;
        }
    }
}

INSTANTIATE_TEST_SUITE_P(Fixtures, Models, testing::ValuesIn(test::kFixtureModels),
                         [](const auto& info) { return info.param.name; });

TEST(Bert, BareModelGetsANewHead) {
    const auto model = test::kBertBare.load();
    const auto batch = test::kBertBare.batch();
    const auto hidden = model->hidden({.batch = batch});
    for (int64_t i = 0; i < batch.size(); ++i) {
        const auto begin = batch.cu_seqlens[i].item<int64_t>(), end = batch.cu_seqlens[i + 1].item<int64_t>();
        EXPECT_TRUE(near(hidden.narrow(0, begin, end - begin),
                         test::kBertBare.expected().tensor(fmt::format("hidden.{}", i)), 1e-5));
    }
    EXPECT_EQ(model->new_modules(), std::vector<std::string>{"classifier"});
    EXPECT_EQ(model->logits({.batch = batch}).sizes(), (std::vector<int64_t>{4, 3}));
    EXPECT_TRUE(at::equal(model->logits({.batch = batch}),
                          test::kBertBare.load()->logits({.batch = batch})));  // one seed
}

TEST(Bert, KeepsItsOwnHead) {
    const auto model = load_model(io::Checkpoint::open(test::kBert.path()),
                                  {.head = nn::Head::sequence_classification, .classes = 9});
    EXPECT_TRUE(model->new_modules().empty());
    EXPECT_EQ(model->shape().classes, 3);
}

TEST(Bert, DropoutActsInTrainingOnly) {
    const auto model = test::kBert.load();
    const auto batch = test::kBert.batch();
    const auto once = model->logits({.batch = batch, .training = true, .random = Random(1)});
    EXPECT_TRUE(at::equal(once, model->logits({.batch = batch, .training = true, .random = Random(1)})));
    EXPECT_FALSE(at::equal(once, model->logits({.batch = batch, .training = true, .random = Random(2)})));
    EXPECT_FALSE(at::equal(once, model->logits({.batch = batch})));
}

TEST(Roberta, ANewHeadIsOneModule) {
    const auto model =
        load_model(io::Checkpoint::open("tests/fixtures/models/roberta"),
                   {.head = nn::Head::sequence_classification, .classes = 5, .new_head = true});
    EXPECT_EQ(model->new_modules(), std::vector<std::string>{"classifier"});
    EXPECT_EQ(model->module_tensors("classifier").size(), 4U);
    EXPECT_EQ(model->logits({.batch = test::kBert.batch()}).sizes(), (std::vector<int64_t>{4, 5}));
}

TEST(Roberta, PaddingTakesPositions) {
    const auto checkpoint = io::Checkpoint::open("tests/fixtures/models/roberta");
    EXPECT_EQ(load_model(checkpoint, {.head = nn::Head::sequence_classification})->shape().max_positions, 14);
    EXPECT_EQ(stored_classes(checkpoint), 3);
}

TEST(Model, ListsItsTensorsAsTheFileDoes) {
    for (const auto& fixture : test::kFixtureModels) {
        std::set<std::string> stored, known;
        for (auto name : io::Checkpoint::open(fixture.path()).names()) {
            if (std::string(fixture.name) == "llama_bare") name = "model." + name;
            stored.insert(name);
        }
        const auto model = fixture.load();
        for (const auto& [name, slots] : model->tensors()) known.insert(name);
        EXPECT_EQ(known, stored) << fixture.name;
    }
}

// A copy of a fixture whose config.json and tensors can be changed.
class Broken : public testing::Test {
  protected:
    const test::TempFolder folder;
    nlohmann::json config;
    io::NamedTensors tensors;

    void start(const FixtureModel& fixture) {
        std::ifstream file(fixture.path() / "config.json");
        config = nlohmann::json::parse(file);
        tensors.clear();
        const auto checkpoint = io::Checkpoint::open(fixture.path());
        for (const auto& name : checkpoint.names()) tensors.emplace_back(name, checkpoint.tensor(name));
    }
    std::unique_ptr<nn::Model> load(nn::Head head = nn::Head::causal_lm) const {
        test::write_raw(folder / "config.json", config.dump());
        io::write_safetensors(folder / "model.safetensors", tensors);
        return load_model(io::Checkpoint::open(folder.path()), {.head = head, .classes = 3});
    }
};

TEST_F(Broken, UnchangedItLoads) {
    start(test::kLlamaTied);
    EXPECT_NO_THROW(load());
}

// As in transformers 5, which ties only what is one matrix in the file.
TEST_F(Broken, ATiedHeadThatTheFileHasOtherwise) {
    start(test::kLlamaTied);
    const auto table = io::Checkpoint::open(test::kLlamaTied.path()).tensor("model.embed_tokens.weight");
    tensors.emplace_back("lm_head.weight", table.clone());
    EXPECT_TRUE(load()->has_tied_output());
    tensors.back().second = 2 * table;
    const auto batch = test::kLlamaTied.batch();
    const auto doubled = load()->logits({.batch = batch});
    EXPECT_TRUE(near(doubled, 2 * test::kLlamaTied.load()->logits({.batch = batch}), 1e-6));
    config["tie_word_embeddings"] = false;
    EXPECT_TRUE(at::equal(load()->logits({.batch = batch}), doubled));
}

TEST_F(Broken, MissingTensor) {
    start(test::kLlamaTied);
    std::erase_if(tensors,
                  [](const auto& entry) { return entry.first == "model.layers.1.mlp.up_proj.weight"; });
    EXPECT_FAILS(model, "tensor \"model.layers.1.mlp.up_proj.weight\" (48, 32) is missing", load());
}

TEST_F(Broken, WrongShape) {
    start(test::kLlamaTied);
    for (auto& [name, tensor] : tensors)
        if (name == "model.norm.weight") tensor = tensor.narrow(0, 0, 31);
    EXPECT_FAILS(model, "\"model.norm.weight\" has shape (31), but config.json asks for (32)", load());
}

TEST_F(Broken, UnknownArchitecture) {
    start(test::kLlamaTied);
    config["model_type"] = "llama9";
    EXPECT_FAILS(model, "model_type \"llama9\" is not supported; known architectures: bert, llama", load());
}

TEST_F(Broken, UnsupportedRopeScaling) {
    start(test::kLlamaTied);
    config["rope_parameters"] = {{"rope_type", "yarn"}, {"factor", 2.0}};
    EXPECT_FAILS(model, "rope scaling \"yarn\" is not supported", load());
    config.erase("rope_parameters");
    config["rope_scaling"] = {{"type", "dynamic"}, {"factor", 2.0}};
    EXPECT_FAILS(model, "rope scaling \"dynamic\" is not supported", load());
}

TEST_F(Broken, HeadsThatDoNotDivide) {
    start(test::kLlamaTied);
    config["num_key_value_heads"] = 3;
    EXPECT_FAILS(model, "num_key_value_heads (3) does not divide num_attention_heads (4)", load());
    start(test::kBert);
    config["num_attention_heads"] = 5;
    EXPECT_FAILS(model, "num_attention_heads (5) does not divide hidden_size (32)",
                 load(nn::Head::sequence_classification));
}

TEST_F(Broken, NonsenseSizes) {
    start(test::kLlamaTied);
    for (const int64_t size : {int64_t{0}, int64_t{-4}, int64_t{1} << 40}) {
        config["hidden_size"] = size;
        EXPECT_FAILS(model, "\"hidden_size\"", load());
    }
    start(test::kLlamaTied);
    config["head_dim"] = 7;
    EXPECT_FAILS(model, "heads are 7 wide, but rotary positions need an even width", load());
}

TEST_F(Broken, AnEncoderGeneratesNothing) {
    start(test::kBert);
    EXPECT_FAILS(model, "use --task classify", load(nn::Head::causal_lm));
}

TEST_F(Broken, APaddingTokenBehindTheLastPosition) {
    start(test::kFixtureModels.back());
    config["pad_token_id"] = 15;
    EXPECT_FAILS(model, "max_position_embeddings is 16, but positions begin at 16",
                 load(nn::Head::sequence_classification));
    config["pad_token_id"] = -1;
    EXPECT_FAILS(model, "\"pad_token_id\" is -1", load(nn::Head::sequence_classification));
}

TEST_F(Broken, UnknownActivation) {
    start(test::kBert);
    config["hidden_act"] = "swish9";
    EXPECT_FAILS(model, "activation \"swish9\" is not supported", load(nn::Head::sequence_classification));
}

}  // namespace
}  // namespace ether::models
