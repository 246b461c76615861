// The architectures ether knows: an explicit list, one line each.
#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <span>
#include <string>

#include "ether/io/adapter_folder.h"
#include "ether/io/checkpoint.h"
#include "ether/nn/model.h"

namespace ether::models {

struct LoadOptions {
    nn::Head head = nn::Head::causal_lm;
    int64_t classes = 0;    // of a new classification head
    bool new_head = false;  // draw a classification head even where the checkpoint has one of its own
    at::ScalarType dtype =
        at::ScalarType::Undefined;  // of weights and activations; undefined: stored_dtype()
    uint64_t seed = 0;              // of a new head's starting values
    at::Device device = at::kCPU;
    // In training, of hidden states, attention's probabilities and a classifier's input; absent: as
    // config.json says for each.
    std::optional<double> dropout = {};
};

using MakeModel = std::unique_ptr<nn::Model> (*)(const io::Checkpoint&, const LoadOptions&);

struct Architecture {
    const char* model_type;  // config.json's
    MakeModel make;
    const char* classifier;            // the classification head's last layer: its rows are the classes
    const char* classifier_class;      // transformers' classes, for config.json's "architectures"
    const char* language_model_class;  // null: an encoder, which cannot generate
    // config.json's switches that give all of a block's attention, or MLP, layers a bias; null: there is
    // none.
    const char* attention_bias = nullptr;
    const char* mlp_bias = nullptr;
};

std::span<const Architecture> architectures();

// Has config.json say that layers have the biases which a merge added to the base model's tensors, and adds
// zeros where the same switch gives a layer one. An architecture without such a switch is an error.
void declare_new_biases(const nn::Model& base, nlohmann::json& config,
                        std::vector<std::pair<std::string, at::Tensor>>& tensors);

// The entry for config.json's model_type; an unknown one is an error that lists all.
const Architecture& architecture_of(const io::Checkpoint& checkpoint);

std::unique_ptr<nn::Model> load_model(const io::Checkpoint& checkpoint, const LoadOptions& options);

// bfloat16 where the checkpoint's first weight is bfloat16, else float32 (float16 is widened: no CPU computes
// in it well).
at::ScalarType stored_dtype(const io::Checkpoint& checkpoint);

// The number of classes of the checkpoint's own classification head, if it has one.
std::optional<int64_t> stored_classes(const io::Checkpoint& checkpoint);
// Likewise of an adapter on it.
std::optional<int64_t> stored_classes(const io::AdapterFiles& adapter, const io::Checkpoint& checkpoint);
// Whether config.json says that a text may have several of the head's labels at once (problem_type).
bool is_multi_label(const io::Checkpoint& checkpoint);
// config.json's names for `classes` classes (id2label), their numbers where it has none for so many.
std::vector<std::string> stored_class_names(const io::Checkpoint& checkpoint, int64_t classes);
// Outputs of the head that load_model gives: the stored head's, or options.classes.
int64_t head_classes(const io::Checkpoint& checkpoint, const LoadOptions& options);

}  // namespace ether::models
