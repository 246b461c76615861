// AdaptedModel: a base model with one adapter on it: binds the adapter's forms before each pass, and reads
// and writes adapter files. Owns both. One pass at a time.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "ether/io/adapter_folder.h"
#include "ether/methods/method.h"
#include "ether/methods/targets.h"

namespace ether::methods {

// What makes a new adapter.
struct AdapterConfig {
    std::string method = "ether+";
    std::map<std::string, std::string> options;  // of the method, by field name
    Targets targets{.modules = ""};              // no modules named: the method's own
    std::vector<std::string> modules_to_save;    // trained whole, besides a new head
    uint64_t seed = 0;
};

class AdaptedModel {
  public:
    // A new adapter at its starting values.
    AdaptedModel(std::unique_ptr<nn::Model> model, const AdapterConfig& config);
    // An adapter from files. Every tensor must fit and none may be left over; unknown settings are errors.
    AdaptedModel(std::unique_ptr<nn::Model> model, const io::AdapterFiles& files);

    // Bind the forms unless pass.bound, then run the model.
    at::Tensor hidden(const nn::Pass& pass);
    at::Tensor logits(const nn::Pass& pass);
    // Makes this pass's forms without running: for passes that run side by side and share them.
    void bind(const nn::Pass& pass);

    nn::Model& model() { return *model_; }
    const nn::Model& model() const { return *model_; }
    nn::ParameterStore& parameters() { return parameters_; }
    const nn::ParameterStore& parameters() const { return parameters_; }
    Adapter& adapter() { return *adapter_; }
    const Adapter& adapter() const { return *adapter_; }
    const Method& method() const { return *method_; }
    const std::vector<nn::Site*>& sites() const { return sites_; }
    // Values that the method trains, whether its own or the base's; heads are not its doing.
    int64_t method_parameters() const;

    // adapter_config.json and tensors; `base` is written as base_model_name_or_path.
    io::AdapterFiles files(const std::string& base) const;
    // Files of another method's adapter on the same layers, with that one's options and tensors (names as in
    // the ParameterStore) beside the modules that this one trained whole.
    io::AdapterFiles files_as(const Method& method, MethodOptions& options, const io::NamedTensors& tensors,
                              const std::string& base) const;

    // Every tensor of the merged model by name, in the given dtype: weights with the forms multiplied in
    // (computed in float32, or float64 for a float64 model), trained copies, and the rest as it is. Tied
    // tensors appear once, unless forms change one use of them: that one then has a tensor of its own.
    std::vector<std::pair<std::string, at::Tensor>> merged_tensors(at::ScalarType dtype);

  private:
    void build(const MethodOptions& options, uint64_t seed, bool from_file);
    nlohmann::json config_for(const Method& method, MethodOptions& options, const std::string& base) const;
    // Whether it is a target's frozen weight, which PEFT saves beside the adapter of an output layer.
    bool is_base_weight(const std::string& key, const at::Tensor& tensor) const;
    // Whether it is a layer's copy of a shared buffer, which PEFT saves beside RandLoRA's.
    bool is_shared_copy(const std::string& key, const at::Tensor& tensor) const;

    std::unique_ptr<nn::Model> model_;
    nn::ParameterStore parameters_;
    const Method* method_;
    std::unique_ptr<MethodOptions> options_;
    Targets targets_;
    std::vector<std::string> modules_to_save_;
    std::vector<nn::Site*> sites_;
    std::unique_ptr<Adapter> adapter_;
};

}  // namespace ether::methods
