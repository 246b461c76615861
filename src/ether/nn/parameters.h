// ParameterStore: everything trainable by name, and the frozen buffers saved with it (e.g. VeRA's shared
// matrices). What the optimizer, checkpoints and adapter files walk. Tensors are handles: methods and models
// share them.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace ether::nn {

enum class ParameterGroup {
    adapter,  // made by a method
    head,     // a head or another module trained whole (modules_to_save)
    base,     // a base weight trained by full fine-tuning
};

struct Parameter {
    // Its scope, and what it is called in the adapter file, without "base_model.model."; shared by all sites,
    // and then without "base_model.", if that has no dot.
    std::string name;
    at::Tensor value;
    ParameterGroup group = ParameterGroup::adapter;
    bool trained = true;  // false: a buffer that is only saved
    bool saved = true;    // false: of training alone, in its checkpoints and not in adapter files

    std::string scope = {};  // of one of several adapters: "parts.0.", else ""

    std::string bare() const { return name.substr(scope.size()); }
    bool shared() const { return bare().find('.') == std::string::npos; }
};

class ParameterStore {
  public:
    explicit ParameterStore(at::Device device = at::kCPU) : device_(device) {}

    // Registers a tensor, brought to the store's device, under a new name; a trained one becomes a leaf that
    // requires a gradient.
    at::Tensor add(std::string name, at::Tensor value, ParameterGroup group = ParameterGroup::adapter,
                   bool trained = true, bool saved = true);

    // From now on it is an error to add many more saved values than that: the settings of an adapter whose
    // file has so many must not make the program allocate layer after layer what the file cannot fill. (What
    // is a little too large is better told tensor by tensor.)
    void expect_saved(int64_t values) { expected_ = values; }
    // The same for what is about to be made.
    void check_room(int64_t more, const std::string& name) const;

    // Names added from now on begin with this, and are found with it or without.
    void enter(std::string scope) { scope_ = std::move(scope); }

    const std::vector<Parameter>& all() const { return parameters_; }
    const Parameter* find(const std::string& name) const;
    std::vector<Parameter> trained() const;
    int64_t count(ParameterGroup group) const;  // trained values
    int64_t count() const;                      // trained values of all groups
    void clear_grads() const;

  private:
    at::Device device_;
    std::vector<Parameter> parameters_;
    std::string scope_;
    int64_t saved_ = 0;
    std::optional<int64_t> expected_;
};

}  // namespace ether::nn
