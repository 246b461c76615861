// AdaptedModel: a base model with an adapter on it, or several: binds their forms before each pass, and reads
// and writes adapter files. Owns both. One pass at a time.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "ether/io/adapter_folder.h"
#include "ether/methods/method.h"
#include "ether/methods/targets.h"

namespace ether::methods {

// One method on chosen layers.
struct PartConfig {
    std::string method;
    std::map<std::string, std::string> options = {};  // of the method, by field name
    Targets targets{.modules = ""};                   // no modules named: the method's own
    std::optional<double> lr = {};                    // absent: the method's own
};

// What makes a new adapter.
struct AdapterConfig {
    std::string method = "ether+";
    std::map<std::string, std::string> options;
    Targets targets{.modules = ""};
    std::vector<std::string> modules_to_save;  // trained whole, besides a new head
    uint64_t seed = 0;
    std::vector<PartConfig> also = {};  // further methods, each on top of those before it
};

// A trained adapter among several: what it is called, its files, and how much of it is wanted.
struct NamedAdapter {
    std::string name;
    io::AdapterFiles files;
    double weight = 1;
};

// The method of an adapter_config.json, of several the first.
const Method& method_of(const nlohmann::json& config);

// Runs a model on the next batch of training examples, over and over.
using RunBatch = std::function<void(const nn::Model&)>;

class AdaptedModel {
  public:
    // A new adapter at its starting values; run_batch for such that depend on the data.
    AdaptedModel(std::unique_ptr<nn::Model> model, const AdapterConfig& config,
                 const RunBatch& run_batch = {});
    // An adapter from files. Every tensor must fit and none may be left over; unknown settings are errors.
    AdaptedModel(std::unique_ptr<nn::Model> model, const io::AdapterFiles& files);
    // Several, each on top of those before it, as if these had been merged. A weight other than 1 is for
    // adapters that only add to weights. At most one may hold a module that was trained whole.
    AdaptedModel(std::unique_ptr<nn::Model> model, const std::vector<NamedAdapter>& adapters);
    // One to train on: a head that the model has drawn, and these modules, are trained whole from the model's
    // values where the files hold none.
    AdaptedModel(std::unique_ptr<nn::Model> model, const io::AdapterFiles& files,
                 const std::vector<std::string>& modules_to_save);

    // Bind the forms unless pass.bound, then run the model.
    at::Tensor hidden(const nn::Pass& pass);
    at::Tensor logits(const nn::Pass& pass);
    // Makes this pass's forms without running: for passes that run side by side and share them.
    void bind(const nn::Pass& pass);

    // Which of the named adapters act from now on, and how much of each; the others do nothing.
    void activate(const std::map<std::string, double>& weights);

    nn::Model& model() { return *model_; }
    const nn::Model& model() const { return *model_; }
    nn::ParameterStore& parameters() { return parameters_; }
    const nn::ParameterStore& parameters() const { return parameters_; }
    // The adapted layers of all methods, in the model's order.
    const std::vector<nn::Site*>& sites() const { return sites_; }
    // The methods' names, and for one that adapts no chosen layers what it does: for messages.
    std::string method_name() const;
    const Method* method_without_sites() const;
    // Whether a method inserts modules at points of blocks: such adapters cannot be merged, nor their blocks
    // run again.
    bool inserts_modules();
    // Whether the model has no head but one that was drawn and no adapter trained: an encoder as it is, for
    // its hidden states (PEFT's FEATURE_EXTRACTION).
    bool is_headless() const;
    // Values that the methods train, whether their own or the base's; heads are not their doing.
    int64_t method_parameters() const;
    // How fast a parameter of a method learns; rate: of the first method.
    double learning_rate(const nn::Parameter& parameter, double rate) const;

    // A run to come and the points of a step (Adapter), of all methods.
    void check_run(const RunPlan& plan) const;
    int forward_passes() const;
    at::Tensor extra_loss(const std::vector<at::Tensor>& logits);
    bool wants_weight_grad();
    void after_backward(const Progress& progress);
    void after_update(const Update& update);

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
    // One method on chosen layers.
    struct Part {
        const Method* method;
        std::unique_ptr<MethodOptions> options;
        Targets targets;
        std::optional<double> lr = {};
        std::string name = {}, file_scope = {};  // of the adapter that holds it, and of its tensors there
        double weight = 1;
        bool headless = false;       // TargetWords::headless
        bool holds_modules = false;  // in its adapter, trained whole
        std::string scope = {};      // of its parameters
        Selection targeted = {};
        std::unique_ptr<Adapter> adapter = {};
    };
    // "parts.0.", of the k-th of several methods; a single one has none.
    static std::string scope_of(size_t k, size_t parts);
    static Part part_of(const PartConfig& config);
    static Part part_of(const nlohmann::json& config);

    // What is in an adapter's files, but for what its parts say.
    struct Taken {
        std::string name;
        std::vector<std::string> modules;  // trained whole
        io::NamedTensors tensors;
    };
    Taken take(const NamedAdapter& adapter);
    void read(const std::vector<NamedAdapter>& adapters, const std::vector<std::string>& more_modules);
    void save_modules(const std::vector<std::string>& modules);
    void build(uint64_t seed, bool from_file, const RunBatch& run_batch = {});
    void choose_sites(Part& part, TargetWords words);
    void load(const Taken& adapter);
    // An adapter's tensor belongs to a module that another of several adapters trained whole.
    void check_not_whole_elsewhere(const std::string& key, const Taken& adapter) const;
    void check_order(const Part& part) const;
    void check_weight(const Part& part) const;
    void bind_targets(Part& part, const nn::Pass& pass);
    void bind_points(const nn::Pass& pass);
    void bind_tokens(const nn::Pass& pass);
    bool holds(const Part& part, const nn::Site& site) const;
    nlohmann::json common_config(const std::string& base) const;
    bool is_wrapped() const;  // Method::wraps_layers, in the file of all parts
    void add_whole_modules(io::AdapterFiles& files) const;
    // Whether it is a weight of the base, as PEFT saves beside adapters of output layers and, where the
    // vocabulary was resized, of embeddings.
    bool is_base_weight(const std::string& key, const at::Tensor& tensor) const;
    // Whether it is a layer's copy of what is shared, as PEFT saves beside RandLoRA's buffers, and of trained
    // tokens for a tied output layer.
    bool is_shared_copy(const std::string& key, const at::Tensor& tensor) const;

    std::unique_ptr<nn::Model> model_;
    nn::ParameterStore parameters_;
    std::vector<std::string> modules_to_save_;
    std::vector<Part> parts_;
    std::vector<nn::Site*> sites_;
};

}  // namespace ether::methods
