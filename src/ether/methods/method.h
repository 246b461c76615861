// A method adapts a model: it makes parameters at chosen sites and, before each pass, describes them as
// forms. A new method is one file that defines a Method, and one line in registry.cpp.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "ether/core/options.h"
#include "ether/core/random.h"
#include "ether/io/safetensors.h"
#include "ether/nn/model.h"

namespace ether::methods {

// What a method lets its users choose. Field keys are the names in adapter_config.json, PEFT's where PEFT has
// them.
struct MethodOptions {
    virtual ~MethodOptions() = default;
    virtual Fields fields() = 0;
    // Takes what no field can hold out of an adapter_config.json.
    virtual void from_config(nlohmann::json& /*config*/) {}
    // Puts what the fields have written there in PEFT's words.
    virtual void to_config(nlohmann::json& /*config*/) const {}
    // Puts a file's tensors, where these settings have others there, in the names and shapes of parameters;
    // or the settings right, where they say other than the tensors.
    virtual void from_tensors(io::NamedTensors& /*tensors*/) {}
};

// A run that is to come.
struct RunPlan {
    int64_t steps = 0;
    int64_t accumulate = 1;  // batches a step
};

// A step of a run whose gradients are there.
struct Progress {
    int64_t step = 0;  // steps done before it
    int64_t total = 0;
};

// A step of a run when its parameters have been updated; gradients are still there.
struct Update {
    int64_t step = 0;  // steps done, this one included
    int64_t total = 0;
    double gradient_scale = 1;  // by which clipping shortened the gradients
};

// PEFT's name of what stands before every text, which has no path of a module.
inline constexpr const char* kPromptEmbeddings = "prompt_embeddings";

// One adapter on one model. Parameters live in the ParameterStore; forms are made from them anew for every
// pass, so that autograd reaches them.
class Adapter {
  public:
    virtual ~Adapter() = default;

    // Comes before all that is asked of a pass: the place for what is quicker made for all sites at once.
    virtual void begin_pass(const nn::Pass&) {}

    // The forms of one of the adapter's sites in this pass.
    virtual nn::SiteForms forms(const nn::Site&, const nn::Pass&) { return {}; }

    // Likewise of the table of word embeddings, where it is a target.
    virtual nn::SiteForms embedding_forms(const nn::Pass&) { return {}; }

    // What the adapter does at the points of a block in this pass, for methods that insert modules.
    virtual nn::BlockPoints points(int64_t /*layer*/, const nn::Pass&) { return {}; }

    // Embeddings that stand in the place of the base's; null: none.
    virtual const nn::TokenRows* tokens(const nn::Pass&) { return nullptr; }

    // Whether it works on the base's own weights, and so cannot stand behind a method that has changed them.
    virtual bool reads_weights() const { return false; }

    // Likewise of a layer's bias: trains it in its place, or starts from it.
    virtual bool reads_bias(const nn::Site&) const { return false; }

    // Puts an adapter_config.json, complete otherwise, in the words that PEFT knows for this type.
    virtual void to_config(nlohmann::json& /*config*/) const {}

    // Likewise for the tensors, by their names in the ParameterStore.
    virtual void to_tensors(io::NamedTensors& /*tensors*/) const {}

    // Asked before anything of a run is written: an Error of kind usage where it does not suit the options.
    virtual void check_run(const RunPlan&) const {}

    // Points of a step, for methods that are more than forms. Defaults: one pass, nothing extra.
    virtual int forward_passes() const { return 1; }
    // Counts as the mean loss does, however a step is cut: each piece adds its share of it.
    virtual at::Tensor extra_loss(const std::vector<at::Tensor>& /*logits of each pass*/) { return {}; }
    virtual bool wants_weight_grad(const nn::Site&) { return false; }
    // Receives the gradient (out, in) of a site's frozen weight, once for each of the step's micro-batches;
    // the tensor is freed after the call.
    virtual void weight_grad(const nn::Site&, const at::Tensor&) {}
    virtual void after_backward(const Progress&) {}
    virtual void after_update(const Update&) {}
};

struct MethodContext {
    nn::Model& model;
    const std::vector<nn::Site*>& sites;  // the targets
    nn::ParameterStore& parameters;
    Random random;            // of starting values
    bool loading = false;     // values come from an adapter's file
    bool embeddings = false;  // the table of word embeddings is a target, too
    bool headless = false;    // the file's paths lack ModelShape::prefix
    // Runs the base on the next batch of training examples, over and over, for starts that look at what
    // layers read (Site::watch); empty where there are none.
    std::function<void()> run_batch = {};
};

struct Method {
    const char* name;       // on the command line
    const char* peft_type;  // in adapter_config.json
    const char* summary;    // one line for --help
    double learning_rate;   // good on the first try
    bool takes_sites;       // false: targets do not apply (head, full)
    std::unique_ptr<MethodOptions> (*options)();
    std::unique_ptr<Adapter> (*make)(const MethodOptions&, const MethodContext&);
    // Whether a key that PEFT writes for this type says, with this value, nothing about a trained adapter.
    bool (*ignores)(const std::string& key, const nlohmann::json& value);
    const char* targets = "all-linear";  // where none are named
    bool wraps_layers = true;            // false: in PEFT's files modules' names have no "model." in front
    bool takes_embeddings = false;       // targets may name the table of word embeddings
};

// Factories for Method of options and an adapter that is made from them.
template <typename Options>
std::unique_ptr<MethodOptions> make_options() {
    return std::make_unique<Options>();
}
template <typename MethodAdapter, typename Options>
std::unique_ptr<Adapter> make_adapter(const MethodOptions& options, const MethodContext& context) {
    return std::make_unique<MethodAdapter>(dynamic_cast<const Options&>(options), context);
}

// For methods without options, and such that understand every key.
struct NoOptions : MethodOptions {
    Fields fields() override { return {}; }
};
inline bool ignores_nothing(const std::string&, const nlohmann::json&) { return false; }

// What a method keeps for each of a model's sites.
template <typename Value>
class BySite {
  public:
    explicit BySite(const nn::Model& model) : values_(model.sites().size()) {}
    Value& operator[](const nn::Site& site) { return values_[static_cast<size_t>(site.index)]; }
    const Value& operator[](const nn::Site& site) const { return values_[static_cast<size_t>(site.index)]; }
    auto begin() { return values_.begin(); }
    auto end() { return values_.end(); }

  private:
    std::vector<Value> values_;
};

// A branch of one form and nothing else: x through `form`, whose input may be dropped.
inline nn::SiteForms branch(nn::Form form, double dropout = 0) {
    nn::SiteForms forms;
    auto& chain = forms.delta.emplace_back();
    if (dropout > 0) chain.emplace_back(nn::Dropout{dropout});
    chain.push_back(std::move(form));
    return forms;
}
inline nn::SiteForms low_rank(const at::Tensor& a, const at::Tensor& b, double scale, double dropout) {
    return branch(nn::LowRank{a, b, scale}, dropout);
}
// An addition (out, in) to the site's weight, as nn::Dense makes it.
inline nn::SiteForms dense(const nn::Site& site, std::vector<at::Tensor> of, nn::Dense::Make make,
                           double dropout = 0) {
    return branch(nn::Dense{std::move(of), std::move(make), site.linear.out()}, dropout);
}

// "a.b.q_proj" + "ether_u" -> "a.b.q_proj.ether_u", the name of a site's parameter.
inline std::string parameter_name(const nn::Site& site, const std::string& suffix) {
    return site.name() + "." + suffix;
}

// float32 values of that shape: uniform in [-bound, bound); uniform with bound 1 / sqrt(last size), which is
// kaiming-uniform with a = sqrt(5); and normal with that standard deviation.
at::Tensor uniform(at::IntArrayRef shape, double bound, const Random& random);
at::Tensor kaiming_uniform(at::IntArrayRef shape, const Random& random);
at::Tensor normal(at::IntArrayRef shape, double deviation, const Random& random);

// (count) int64: where a method that trains few of `entries` places has them, as PEFT draws them from a seed
// with torch's generator.
at::Tensor random_places(int64_t entries, int64_t count, int64_t seed);

// The norms (out) of a weight's rows, in the accumulation dtype.
at::Tensor row_norms(const at::Tensor& weight);

// Options that many methods have.
Field rank_field(int64_t* rank, const char* help, const char* key = "r");
// A factor of 0 would leave a method without effect, to the last step of a training.
inline constexpr double kLeastScale = 1e-9;
Field alpha_field(double* alpha, const char* key, const char* help = "scale: alpha / r");
Field rslora_field(bool* rslora);
Field dropout_field(double* dropout, const char* key);

// LoRA's scale: alpha / r, or alpha / sqrt(r) (rsLoRA).
double lora_scale(double alpha, int64_t rank, bool rslora);

// An option that is given and idle is an error: "--eps: counts with --exp alone", with `where` what is
// to be given as well. Not where a file is read: PEFT writes all options.
void check_counts(const MethodContext& context, bool idle, const char* option, const char* where);

// width / count; an error that names the option and the layer where count does not divide it. axis: "input",
// "output".
int64_t divided(const nn::Site& site, const char* axis, int64_t width, const char* option, int64_t count);

// The largest number up to `most` that divides the inputs and outputs of all sites.
int64_t common_divisor(const std::vector<nn::Site*>& sites, int64_t most);

// Trains a tensor of the base model: a float32 copy in its place, under a name of its own.
void train_copy(nn::Model& model, nn::ParameterStore& parameters, const std::string& tensor,
                const std::string& name, nn::ParameterGroup group = nn::ParameterGroup::adapter);

}  // namespace ether::methods
