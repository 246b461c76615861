// Whole runs on tests/fixtures/models: accumulation equals the large batch, and a run that was stopped and
// resumed ends with the same bytes as one that was not.
#include "ether/train/trainer.h"

#include <gtest/gtest.h>

#include "fixture_models.h"
#include "io/test_files.h"

namespace ether::train {
namespace {

namespace fs = std::filesystem;

// Sixteen texts of different lengths in three classes, each with a word of its own.
std::string examples() {
    std::string lines;
    for (int i = 0; i < 16; ++i) {
        std::string text = fmt::format("w{}", 40 + i % 3);
        for (int j = 0; j < 1 + i * 5 % 7; ++j) text += fmt::format(" w{}", 4 + (i * 7 + j * 3) % 30);
        lines += nlohmann::json({{"text", text}, {"label", std::string(1, static_cast<char>('a' + i % 3))}})
                     .dump() +
                 "\n";
    }
    return lines;
}

struct Crash {};

class Recorder : public Callback {
  public:
    explicit Recorder(int64_t crash_at = 0) : crash_at_(crash_at) {}
    void on_step(const StepReport& report) override {
        if (report.step == crash_at_) throw Crash();
        steps.push_back(report);
    }
    void on_evaluation(const EvalReport& report) override { evaluations.push_back(report); }
    std::vector<StepReport> steps;
    std::vector<EvalReport> evaluations;

  private:
    int64_t crash_at_;
};

class Runs : public testing::Test {
  protected:
    const test::TempFolder folder;

    Runs() { test::write_raw(folder / "data.jsonl", examples()); }

    RunConfig config(const char* model, const std::string& out) const {
        RunConfig config;
        config.model = fs::path("tests/fixtures/models") / model;
        config.data = folder / "data.jsonl";
        config.out = folder / out;
        config.batch = 4;
        config.epochs = 2;
        config.lr = 1e-2;
        config.seed = 7;
        config.model_dropout = 0.1;  // so that a run draws at every step
        config.threads = 1;          // these models are too small to share
        return config;
    }
    static Recorder run(const RunConfig& config, bool resume = false, int64_t crash_at = 0) {
        Recorder recorder(crash_at);
        Trainer(config, resume, {&recorder}).run();
        return recorder;
    }
    std::string adapter(const std::string& out) const {
        return test::read_raw(folder / out / "adapter_model.safetensors");
    }
};

TEST_F(Runs, ClassificationIsLearnt) {
    auto settings = config("bert_bare", "run");
    settings.eval_data = settings.data;
    settings.epochs = 30;
    const auto recorder = run(settings);
    EXPECT_EQ(recorder.steps.size(), 120U);
    EXPECT_LT(recorder.steps.back().loss, 0.5 * recorder.steps.front().loss);
    EXPECT_GT(recorder.evaluations.back().scores.at("accuracy"), 0.9);
    for (const char* file : {"adapter_config.json", "adapter_model.safetensors", "ether.json", "run.toml"})
        EXPECT_TRUE(fs::exists(folder / "run" / file)) << file;
}

TEST_F(Runs, SameSeedSameBytes) {
    run(config("bert_bare", "one")), run(config("bert_bare", "two"));
    EXPECT_EQ(adapter("one"), adapter("two"));
    auto other = config("bert_bare", "three");
    other.seed = 8;
    run(other);
    EXPECT_NE(adapter("one"), adapter("three"));
}

TEST_F(Runs, ResumedIsUninterrupted) {
    using MethodOptions = std::map<std::string, std::string>;
    // AdaLoRA's importance of each value and what it has zeroed are part of a run.
    const MethodOptions adalora = {{"rank", "4"}, {"target-rank", "2"}, {"tinit", "1"}, {"delta-t", "2"}};
    for (const auto& [model, method, options] : {std::tuple{"bert_bare", "ether+", MethodOptions()},
                                                 {"llama_tied", "ether+", MethodOptions()},
                                                 {"bert_bare", "adalora", adalora}}) {
        const auto name = std::string(model) + method;
        auto settings = config(model, name + "-whole");
        settings.method = method, settings.method_options = options;
        if (std::string(model) == "llama_tied") settings.task = "causal-lm";
        settings.eval_data = settings.data;
        settings.save_every = 3;
        const auto whole = run(settings);
        ASSERT_EQ(whole.steps.size(), 8U);
        for (const int64_t crash_at : {1, 2, 3, 4, 5, 8}) {
            settings.out = folder / fmt::format("{}-{}", name, crash_at);
            EXPECT_THROW(run(settings, false, crash_at), Crash);
            const auto rest = run(settings, true);
            EXPECT_LE(rest.steps.front().step, crash_at);
            for (const auto& step : rest.steps) {
                EXPECT_EQ(step.loss, whole.steps[static_cast<size_t>(step.step - 1)].loss);
                EXPECT_EQ(step.gradient_norm, whole.steps[static_cast<size_t>(step.step - 1)].gradient_norm);
            }
            for (const char* file : {"adapter_model.safetensors", "adapter_config.json", "ether.json"})
                EXPECT_EQ(test::read_raw(fs::path(settings.out) / file),
                          test::read_raw(folder / (name + "-whole") / file))
                    << name << " crashed at step " << crash_at << ": " << file;
        }
    }
}

TEST_F(Runs, AccumulationIsTheLargeBatch) {
    for (const auto& [model, task] : {std::pair{"llama_tied", "causal-lm"},
                                      {"llama_classifier", "classify"},
                                      {"bert_bare", "classify"}}) {
        auto large = config(model, std::string(model) + "-large");
        large.task = task;
        large.batch = 8;
        auto small = large;
        small.out = folder / (std::string(model) + "-small");
        small.batch = 2, small.accumulate = 4;
        const auto one = run(large), four = run(small);
        ASSERT_EQ(one.steps.size(), four.steps.size());
        for (size_t i = 0; i < one.steps.size(); ++i) {
            EXPECT_NEAR(four.steps[i].loss, one.steps[i].loss, 1e-6 * one.steps[i].loss);
            EXPECT_NEAR(four.steps[i].gradient_norm, one.steps[i].gradient_norm,
                        1e-6 * one.steps[i].gradient_norm);
            EXPECT_EQ(four.steps[i].tokens, one.steps[i].tokens);
        }
    }
}

TEST_F(Runs, LittleMemoryIsTheLargeBatch) {
    auto fast = config("bert_bare", "fast");
    fast.batch = 64, fast.max_steps = 4, fast.memory = "fast";
    auto low = fast;
    low.out = folder / "low", low.memory = "low";
    const auto one = run(fast), two = run(low);
    ASSERT_EQ(one.steps.size(), two.steps.size());
    for (size_t i = 0; i < one.steps.size(); ++i) {
        EXPECT_NEAR(two.steps[i].loss, one.steps[i].loss, 1e-6 * one.steps[i].loss);
        EXPECT_EQ(two.steps[i].tokens, one.steps[i].tokens);
    }
}

TEST_F(Runs, RefusesWhatCannotWork) {
    auto settings = config("bert_bare", "run");
    run(settings);
    EXPECT_FAILS(file, "the folder holds a run already", run(settings));
    EXPECT_FAILS(file, "there is no run to resume", run(config("bert_bare", "none"), true));
    settings = config("llama_tied", "head");
    settings.task = "causal-lm";
    settings.method = "head";
    EXPECT_FAILS(usage, "nothing would be trained", run(settings));
    settings = config("bert_bare", "long");
    settings.max_length = 1000;
    EXPECT_FAILS(usage, "--max-length: 1000 is more than the model's 16 positions", run(settings));
    settings = config("bert_bare", "missing");
    settings.data = folder / "nothing.jsonl";
    EXPECT_FAILS(file, "nothing.jsonl", run(settings));
    settings = config("bert_bare", "rate");
    settings.lr = -1;
    EXPECT_FAILS(usage, "lr", run(settings));
    settings = config("bert_bare", "pieces");
    settings.method = "id3";
    settings.accumulate = 2;
    EXPECT_FAILS(usage, "use --accumulate 1", run(settings));
    settings.accumulate = 1, settings.memory = "low";
    EXPECT_FAILS(usage, "--memory low: method id3 looks at", run(settings));
    settings = config("bert_bare", "schedule");
    settings.method = "adalora";
    settings.method_options = {{"tinit", "100"}};
    EXPECT_FAILS(usage, "--tinit and --tfinal: 100 and 0 leave none", run(settings));
    settings = config("bert_bare", "again");
    settings.method = "prefix";
    settings.checkpoint_activations = true;
    EXPECT_FAILS(usage, "--checkpoint-activations: blocks of method prefix cannot", run(settings));
    for (const char* out : {"none", "head", "long", "missing", "rate", "pieces", "schedule", "again"})
        EXPECT_FALSE(fs::exists(folder / out)) << out;
}

TEST_F(Runs, GoesOnWithTheSameInputsOnly) {
    const auto settings = config("bert_bare", "run");
    EXPECT_THROW(run(settings, false, 3), Crash);
    test::write_raw(folder / "data.jsonl", examples().append("{\"text\": \"w5 w6\", \"label\": \"a\"}\n"));
    EXPECT_FAILS(data, "not what the run began with", run(settings, true));
    test::write_raw(folder / "data.jsonl", examples());
    EXPECT_NO_THROW(run(settings, true));
}

TEST_F(Runs, ACheckpointThatLiesAboutItsStepIsPassedOver) {
    auto settings = config("bert_bare", "run");
    settings.save_every = 1;
    EXPECT_THROW(run(settings, false, 4), Crash);
    for (const int64_t step : {-5, 4, 1 << 30}) {
        settings.out = folder / std::to_string(step);
        fs::copy(folder / "run", settings.out, fs::copy_options::recursive);
        const auto file = fs::path(settings.out) / "checkpoints" / "step-000000003" / "state.json";
        auto state = nlohmann::json::parse(test::read_raw(file));
        state["step"] = step;
        test::write_raw(file, state.dump());
        EXPECT_EQ(run(settings, true).steps.front().step, 3) << step;
    }
}

TEST_F(Runs, AFreshStartClearsWhatAnOlderRunLeft) {
    auto settings = config("bert_bare", "run");
    run(settings);
    const fs::path out = settings.out;
    fs::remove(out / "run.toml");
    fs::create_directories(out / "checkpoints" / "step-000000099.tmp-1-1");
    settings.max_steps = 2;
    EXPECT_FAILS(file, "holds adapter_config.json, which a run would replace", run(settings));
    for (const char* name : {"adapter_config.json", "adapter_model.safetensors", "ether.json"})
        fs::remove(out / name);
    run(settings);
    std::vector<std::string> left;
    for (const auto& entry : fs::directory_iterator(out / "checkpoints"))
        left.push_back(entry.path().filename());
    std::sort(left.begin(), left.end());
    EXPECT_EQ(left, (std::vector<std::string>{"step-000000000", "step-000000002"}));
}

TEST_F(Runs, AModelsOwnHeadKeepsItsOrderOfLabels) {
    const fs::path source = "tests/fixtures/models/bert", copy = folder / "model";
    fs::copy(source, copy);
    auto json = nlohmann::json::parse(test::read_raw(source / "config.json"));
    json["id2label"] = {{"0", "c"}, {"1", "a"}, {"2", "b"}};
    test::write_raw(copy / "config.json", json.dump());
    auto settings = config("bert", "own");
    settings.model = copy;
    run(settings);
    const auto ether = nlohmann::json::parse(test::read_raw(folder / "own" / "ether.json"));
    EXPECT_EQ(ether["labels"], (nlohmann::json{"c", "a", "b"}));
    const auto adapter_config = nlohmann::json::parse(test::read_raw(folder / "own" / "adapter_config.json"));
    EXPECT_EQ(adapter_config["modules_to_save"], nlohmann::json{"classifier"});
    // Other labels get a head of their own.
    settings = config("bert", "new");
    run(settings);
    EXPECT_EQ(nlohmann::json::parse(test::read_raw(folder / "new" / "ether.json"))["labels"],
              (nlohmann::json{"a", "b", "c"}));
}

// A copy of llama_tied whose last norm is multiplied by a factor.
class Damaged : public Runs {
  protected:
    RunConfig config_with_norm_times(double factor) const {
        const fs::path source = "tests/fixtures/models/llama_tied", copy = folder / "model";
        fs::create_directories(copy);
        for (const char* file : {"config.json", "tokenizer.json"}) fs::copy(source / file, copy / file);
        const io::SafetensorsFile stored(source / "model.safetensors");
        io::NamedTensors tensors;
        for (const auto& name : stored.names())
            tensors.emplace_back(
                name, name == "model.norm.weight" ? stored.tensor(name) * factor : stored.tensor(name));
        io::write_safetensors(copy / "model.safetensors", tensors);
        auto settings = config("llama_tied", "run");
        settings.model = copy;
        settings.task = "causal-lm";
        return settings;
    }
};

TEST_F(Damaged, ALossThatIsNoNumberEndsTheRun) {
    EXPECT_FAILS(numeric, "at step 1 with learning rate 0.01; the last good checkpoint is",
                 run(config_with_norm_times(2e38)));
    EXPECT_FALSE(fs::exists(folder / "run" / "adapter_config.json"));
}

TEST_F(Damaged, WeightsThatAreNoNumbersAreRefused) {
    EXPECT_FAILS(numeric, "model: tensor \"model.norm.weight\" holds NaN or infinity",
                 run(config_with_norm_times(std::nan(""))));
    EXPECT_FALSE(fs::exists(folder / "run"));
}

}  // namespace
}  // namespace ether::train
