// Weights: loads a model's tensors by name while the model is built, checks shapes, converts the dtype,
// brings each to the model's device and registers it as a slot of the model. Used by model files only.
#pragma once

#include <string>
#include <vector>

#include "ether/io/checkpoint.h"
#include "ether/nn/model.h"
#include "ether/ops/gpu/upload.h"

namespace ether::nn {

// "(2, 3)", for messages.
std::string shape_text(at::IntArrayRef shape);

class Weights {
  public:
    // prefix: the base model's name in the Auto class ("bert.", "model."), which files may have or lack.
    // dtype: of the computation; undefined = as stored. seed: for modules that the checkpoint lacks.
    Weights(Model& model, const io::Checkpoint& checkpoint, std::string prefix, uint64_t seed);

    // Fills *slot with the named tensor; an error names tensor, expected and found shape.
    void load(at::Tensor* slot, const std::string& name, at::IntArrayRef shape);
    bool contains(const std::string& name) const { return find(name).has_value(); }
    // Whether the checkpoint has a tensor of that name whose values are not those of the loaded `slot`.
    bool differs(const std::string& name, const std::string& slot) const;

    // A new site from "<module>.weight" and, if has_bias, "<module>.bias".
    Site* site(const std::string& module, int64_t out, int64_t in, bool has_bias, int64_t layer,
               bool is_output = false);
    // A site for a head: drawn from N(0, deviation^2) with a zero bias where the checkpoint lacks it, or if
    // `draw`.
    Site* head(const std::string& module, int64_t out, int64_t in, bool has_bias, double deviation,
               bool draw);
    // The head that shares another slot's tensor (tied embeddings): registered as a slot of that tensor.
    Site* tied_head(const std::string& module, const std::string& tied_to);

  private:
    std::optional<std::string> find(const std::string& name) const;
    Site* add_site(const std::string& module, int64_t layer, bool is_output);

    Model& model_;
    const io::Checkpoint& checkpoint_;
    std::string prefix_;
    uint64_t seed_;
    ops::Upload upload_;
};

}  // namespace ether::nn
