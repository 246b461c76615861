// The tiny models of tests/fixtures/models (made by tests/fixtures/make_models.py) and their batches.
#pragma once

#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "ether/data/batch.h"
#include "ether/io/checkpoint.h"
#include "ether/io/safetensors.h"
#include "ether/models/registry.h"
#include "tensors.h"

namespace ether::test {

struct FixtureModel {
    const char* name;
    nn::Head head;

    bool classifies() const { return head == nn::Head::sequence_classification; }
    std::filesystem::path path() const { return std::filesystem::path("tests/fixtures/models") / name; }
    io::SafetensorsFile expected() const { return io::SafetensorsFile(path() / "expected.safetensors"); }

    std::unique_ptr<nn::Model> load(at::ScalarType dtype = at::kFloat, at::Device device = at::kCPU) const {
        return models::load_model(io::Checkpoint::open(path()),
                                  {.head = head, .classes = 3, .dtype = dtype, .seed = 5, .device = device});
    }

    // Its rows of tokens; with the next token as target (language models) or row number modulo 3 as label.
    std::vector<data::Sequence> sequences() const {
        std::ifstream file(path() / "tokens.json");
        std::vector<data::Sequence> result;
        for (const auto& row : nlohmann::json::parse(file)) {
            auto& sequence = result.emplace_back();
            sequence.ids = row.get<std::vector<int64_t>>();
            sequence.label = static_cast<double>((result.size() - 1) % 3);
            if (classifies()) continue;
            sequence.targets.assign(sequence.ids.begin() + 1, sequence.ids.end());
            sequence.targets.push_back(data::kIgnoredTarget);
        }
        return result;
    }
    data::Batch batch(const std::vector<int64_t>& rows = {0, 1, 2, 3}) const {
        return data::collate(sequences(), rows,
                             classifies() ? data::LabelType::index : data::LabelType::none);
    }
    // Mean cross entropy of the batch's labels or targets.
    at::Tensor loss(const at::Tensor& logits, const data::Batch& batch) const {
        return at::cross_entropy_loss(logits, classifies() ? batch.labels : batch.targets, {},
                                      at::Reduction::Mean, data::kIgnoredTarget);
    }
};

inline const FixtureModel kBert{"bert", nn::Head::sequence_classification};
inline const FixtureModel kBertBare{"bert_bare", nn::Head::sequence_classification};
inline const FixtureModel kLlamaTied{"llama_tied", nn::Head::causal_lm};

inline const std::vector<FixtureModel> kFixtureModels = {
    kBert,
    kLlamaTied,
    {"llama3_rope", nn::Head::causal_lm},
    {"llama_linear_rope", nn::Head::causal_lm},
    {"llama_classifier", nn::Head::sequence_classification},
    {"llama_bare", nn::Head::causal_lm},
    {"mistral", nn::Head::causal_lm},
    {"qwen2", nn::Head::causal_lm},
    {"qwen2_window", nn::Head::causal_lm},
    {"qwen3", nn::Head::causal_lm},
    {"bert_relu", nn::Head::sequence_classification},
    {"mistral_tied", nn::Head::causal_lm},
    {"qwen3_tied", nn::Head::causal_lm},
    {"roberta", nn::Head::sequence_classification},
};

inline void PrintTo(const FixtureModel& model, std::ostream* out) { *out << model.name; }

}  // namespace ether::test
