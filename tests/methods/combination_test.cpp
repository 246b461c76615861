// Several adapters on one model: trained together, saved as one, and loaded beside each other.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "ether/methods/adapted_model.h"
#include "fixture_models.h"
#include "io/test_files.h"

namespace ether::methods {
namespace {

using at::Tensor;
using test::near;
using Several = std::vector<NamedAdapter>;

// Other values than those at the start, which change nothing.
void move(AdaptedModel& adapted, uint64_t seed) {
    const at::NoGradGuard no_grad;
    for (const auto& parameter : adapted.parameters().trained())
        Tensor(parameter.value).add_(0.05 * test::normal(parameter.value.sizes(), seed++, at::kFloat));
}

io::AdapterFiles trained(const test::FixtureModel& fixture, const AdapterConfig& config, uint64_t seed) {
    AdaptedModel adapted(fixture.load(), config);
    move(adapted, seed);
    return adapted.files("base");
}

Tensor logits(AdaptedModel& adapted, const test::FixtureModel& fixture) {
    const at::NoGradGuard no_grad;
    const auto batch = fixture.batch();
    return adapted.logits({.batch = batch});
}

// The base model with an adapter multiplied in.
std::unique_ptr<nn::Model> merged(const test::FixtureModel& fixture, AdaptedModel& adapted) {
    auto model = fixture.load();
    for (const auto& [name, tensor] : adapted.merged_tensors(at::kFloat)) model->replace(name, tensor);
    return model;
}

AdapterConfig three_methods() {
    return {.method = "ether+",
            .options = {{"blocks", "2"}},
            .targets = {.modules = "attention"},
            .seed = 3,
            .also = {{.method = "red", .lr = 0.25},
                     {.method = "lora", .options = {{"rank", "2"}}, .targets = {.modules = "query,dense"}}}};
}

TEST(Combination, EachMethodIsOnTopOfThoseBefore) {
    const auto& bert = test::kBert;
    AdaptedModel adapted(bert.load(), three_methods());
    move(adapted, 5);
    const auto files = adapted.files("base");
    EXPECT_EQ(files.config["peft_type"], "COMBINED");
    EXPECT_EQ(files.config["parts"].size(), 3U);
    EXPECT_EQ(files.config["parts"][1]["peft_type"], "RED");
    AdaptedModel loaded(bert.load(), files);
    const auto expected = logits(adapted, bert);
    EXPECT_TRUE(at::equal(logits(loaded, bert), expected));
    EXPECT_EQ(loaded.method_name(), "ether+ and red and lora");
    EXPECT_EQ(loaded.parameters().count(), adapted.parameters().count());

    // One after the other, each on the model that the last one was merged into.
    auto model = bert.load();
    std::vector<NamedAdapter> parts;
    for (size_t k = 0; k < 3; ++k) {
        io::AdapterFiles own{.config = files.config["parts"][k]};
        for (const auto& [name, tensor] : files.tensors)
            if (const auto scope = fmt::format("parts.{}.", k); name.starts_with(scope))
                own.tensors.emplace_back(name.substr(scope.size()), tensor);
        parts.push_back({fmt::format("{}", k), own});
        AdaptedModel one(std::move(model), own);
        model = merged(bert, one);
    }
    const auto batch = bert.batch();
    // The head is no part's.
    io::AdapterFiles head{
        .config = {{"peft_type", "HEAD"}, {"modules_to_save", files.config["modules_to_save"]}}};
    for (const auto& [name, tensor] : files.tensors)
        if (!name.starts_with("parts.")) head.tensors.emplace_back(name, tensor);
    if (!head.config["modules_to_save"].is_null()) {
        AdaptedModel with_head(std::move(model), head);
        EXPECT_TRUE(near(logits(with_head, bert), expected, 1e-5));
        parts.push_back({"head", head});
    } else {
        EXPECT_TRUE(near(model->logits({.batch = batch}), expected, 1e-5));
    }
    // And as adapters of their own beside each other.
    AdaptedModel beside(bert.load(), parts);
    EXPECT_TRUE(near(logits(beside, bert), expected, 1e-6));
    const auto whole = merged(bert, beside);
    EXPECT_TRUE(near(whole->logits({.batch = batch}), expected, 1e-5));
}

TEST(Combination, MethodsLearnAtTheirOwnRates) {
    const AdaptedModel adapted(test::kBert.load(), three_methods());
    for (const auto& parameter : adapted.parameters().trained()) {
        const double expected = parameter.scope == "parts.1."   ? 0.25
                                : parameter.scope == "parts.2." ? 1e-3  // LoRA's
                                                                : 0.5;
        EXPECT_EQ(adapted.learning_rate(parameter, 0.5), expected) << parameter.name;
    }
}

TEST(Combination, TheFirstMethodStartsAsItDoesAlone) {
    const AdaptedModel both(test::kBert.load(), three_methods());
    auto config = three_methods();
    config.also.clear();
    const AdaptedModel alone(test::kBert.load(), config);
    for (const auto& parameter : alone.parameters().all()) {
        const auto name =
            parameter.group == nn::ParameterGroup::head ? parameter.name : "parts.0." + parameter.name;
        EXPECT_TRUE(at::equal(both.parameters().find(name)->value, parameter.value)) << name;
    }
}

TEST(Combination, AdaptersAreWeightedAndSwitched) {
    const auto& llama = test::kLlamaTied;
    const auto a = trained(llama, {.method = "lora"}, 5),
               b = trained(llama, {.method = "lora", .targets = {.modules = "mlp"}}, 50),
               reflection = trained(llama, {.method = "ether", .seed = 4}, 70);
    const auto batch = llama.batch();
    const auto nothing = llama.load()->logits({.batch = batch});
    auto change = [&](const std::vector<NamedAdapter>& adapters) {
        AdaptedModel adapted(llama.load(), adapters);
        const auto tensors = adapted.merged_tensors(at::kFloat);
        const auto found = std::find_if(tensors.begin(), tensors.end(), [](const auto& entry) {
            return entry.first == "model.layers.1.mlp.up_proj.weight";
        });
        return found->second - *llama.load()->tensors().at(found->first).front();
    };
    const auto of_a = change({{"a", a}}), of_b = change({{"b", b}});
    EXPECT_TRUE(near(change({{"a", a, 0.5}, {"b", b, -2}}), 0.5 * of_a - 2 * of_b, 1e-6));

    AdaptedModel all(llama.load(), Several{{"a", a}, {"b", b}, {"r", reflection}});
    AdaptedModel only_a(llama.load(), a), only_r(llama.load(), reflection);
    all.activate({{"a", 1}});
    EXPECT_TRUE(at::equal(logits(all, llama), logits(only_a, llama)));
    all.activate({{"r", 1}});
    EXPECT_TRUE(at::equal(logits(all, llama), logits(only_r, llama)));
    all.activate({});
    EXPECT_TRUE(at::equal(logits(all, llama), nothing));
    EXPECT_FAILS(adapter, "no adapter \"c\" is loaded", all.activate({{"c", 1}}));
    all.activate({{"a", 0.5}, {"r", 0.5}});
    EXPECT_FAILS(adapter, "only additions to a weight or bias can be taken in part", logits(all, llama));
}

// A bias that is trained or read in its place is the base's, not what a method before has made of it.
TEST(Combination, NoBiasBehindAnotherOutput) {
    const auto& bert = test::kBert;
    const std::map<std::string, std::string> all = {{"bias", "all"}}, own = {{"bias", "lora_only"}};
    const PartConfig readers[] = {{.method = "bitfit"},
                                  {.method = "hiwi"},
                                  {.method = "lora", .options = all},
                                  {.method = "lora", .options = own, .targets = {.modules = "output.dense"}}};
    for (const auto& reader : readers) {
        for (const char* changer : {"red", "ia3"})
            EXPECT_FAILS(usage, "so it cannot stand behind a method that changes the layer's output",
                         AdaptedModel(bert.load(), AdapterConfig{.method = changer, .also = {reader}}));
        const AdapterConfig first{.method = reader.method,
                                  .options = reader.options,
                                  .targets = reader.targets,
                                  .also = {{.method = "ia3"}}};
        EXPECT_NO_THROW(AdaptedModel(bert.load(), first));
        EXPECT_NO_THROW(AdaptedModel(bert.load(), AdapterConfig{.method = "ether+", .also = {reader}}));
    }
    const auto ia3 = trained(bert, {.method = "ia3"}, 5), bias = trained(bert, {.method = "bitfit"}, 50);
    AdaptedModel both(bert.load(), Several{{"a", ia3}, {"b", bias}});
    EXPECT_FAILS(adapter, "cannot stand behind", logits(both, bert));
}

TEST(Combination, NoPartOfAModuleThatIsTheBases) {
    const auto& bert = test::kBert;
    const auto own = trained(bert, {.method = "lora", .modules_to_save = {"pooler"}}, 5);
    EXPECT_FAILS(adapter, "trained the base's tensor", AdaptedModel(bert.load(), Several{{"a", own, 0.5}}));
}

// DoRA is LoRA with the magnitude on top.
TEST(Combination, MagnitudeOnLoraIsDora) {
    const auto& llama = test::kLlamaTied;
    AdaptedModel dora(llama.load(), AdapterConfig{.method = "lora", .options = {{"dora", "true"}}}),
        both(llama.load(), AdapterConfig{.method = "lora", .also = {{.method = "magnitude"}}});
    move(dora, 5);
    for (const auto& parameter : dora.parameters().all()) {
        const std::string suffix = ".lora_magnitude_vector";
        const auto& name = parameter.name;
        const auto same = name.ends_with(suffix)
                              ? "parts.1." + name.substr(0, name.size() - suffix.size()) + ".magnitude"
                              : "parts.0." + name;
        both.parameters().find(same)->value.data().copy_(parameter.value);
    }
    EXPECT_TRUE(near(logits(both, llama), logits(dora, llama), 3e-6));
    const auto batch = llama.batch();
    llama.loss(both.logits({.batch = batch}), batch).backward();
    llama.loss(dora.logits({.batch = batch}), batch).backward();
    const auto name = std::string("model.layers.1.mlp.up_proj");
    const std::pair<std::string, std::string> pairs[] = {
        {".lora_magnitude_vector", "parts.1." + name + ".magnitude"},
        {".lora_B.weight", "parts.0." + name + ".lora_B.weight"}};
    for (const auto& [one, other] : pairs)
        EXPECT_TRUE(near(both.parameters().find(other)->value.grad(),
                         dora.parameters().find(name + one)->value.grad(), 1e-5))
            << other;
}

TEST(Combination, RefusesWhatCannotBeOne) {
    const auto& bert = test::kBert;
    auto make = [&](const std::string& first, const PartConfig& second) {
        return AdaptedModel(bert.load(), AdapterConfig{.method = first, .also = {second}});
    };
    EXPECT_FAILS(usage, "would be trained by two methods", make("full", {.method = "bitfit"}));
    const PartConfig readers[] = {{.method = "hira"},
                                  {.method = "pafi"},
                                  {.method = "id3"},
                                  {.method = "full"},
                                  {.method = "lora", .options = {{"dora", "true"}}},
                                  {.method = "ether", .options = {{"layout", "official"}}},
                                  {.method = "oft-paper", .options = {{"layout", "official"}}}};
    for (const auto& reader : readers) {
        EXPECT_FAILS(usage, "so it cannot stand behind red on the same layers", make("red", reader));
        EXPECT_FAILS(usage, "", make("full", reader));
        if (reader.method == "full") continue;
        auto first =
            AdapterConfig{.method = reader.method, .options = reader.options, .also = {{.method = "red"}}};
        EXPECT_NO_THROW(AdaptedModel(bert.load(), first));
        auto elsewhere = reader;
        elsewhere.targets.modules = "attention";
        EXPECT_NO_THROW(make("red", elsewhere));  // which is on the MLP's output
    }
    EXPECT_FAILS(usage, "--rank: method ether has no such option",
                 make("lora", {.method = "ether", .options = {{"rank", "2"}}}));
    const auto a = trained(bert, {.method = "lora", .modules_to_save = {"classifier"}}, 5);
    EXPECT_FAILS(adapter, "holds a trained \"classifier\", as another",
                 AdaptedModel(bert.load(), Several{{"a", a}, {"b", a}}));
    const auto bias = trained(bert, {.method = "bitfit"}, 5);
    EXPECT_FAILS(adapter, "of which no part can be taken",
                 AdaptedModel(bert.load(), Several{{"a", bias, 0.5}}));
    auto files = trained(bert, three_methods(), 5);
    for (const auto& [key, value] : {std::pair<std::string, nlohmann::json>{"rank_pattern", {{"query", 3}}},
                                     {"bias", "all"},
                                     {"bogus", 3}}) {
        auto changed = files;
        changed.config[key] = value;
        EXPECT_FAILS(adapter, "is not supported beside \"parts\"", AdaptedModel(bert.load(), changed));
    }
    auto inside = files;
    inside.config["parts"][1]["modules_to_save"] = {"pooler"};
    EXPECT_FAILS(adapter, "stands in one of the parts", AdaptedModel(bert.load(), inside));
    files.config["parts"] = nlohmann::json::array();
    EXPECT_FAILS(adapter, "key \"parts\" is []", AdaptedModel(bert.load(), files));
}

}  // namespace
}  // namespace ether::methods
