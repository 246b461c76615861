// A method adapts a model: it makes parameters at chosen sites and, before each pass, describes them as
// forms. A new method is one file that defines a Method, and one line in registry.cpp.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "ether/core/options.h"
#include "ether/core/random.h"
#include "ether/nn/model.h"

namespace ether::methods {

// What a method lets its users choose. Field keys are the names in adapter_config.json, PEFT's where PEFT has
// them.
struct MethodOptions {
    virtual ~MethodOptions() = default;
    virtual Fields fields() = 0;
};

// One adapter on one model. Parameters live in the ParameterStore; forms are made from them anew for every
// pass, so that autograd reaches them.
class Adapter {
  public:
    virtual ~Adapter() = default;

    // The forms of one of the adapter's sites in this pass.
    virtual nn::SiteForms forms(const nn::Site&, const nn::Pass&) { return {}; }

    // Puts an adapter_config.json, complete otherwise, in the words that PEFT knows for this type.
    virtual void to_config(nlohmann::json& /*config*/) const {}

    // Points of a step, for methods that are more than forms. Defaults: one pass, nothing extra.
    virtual int forward_passes() const { return 1; }
    virtual at::Tensor extra_loss(const std::vector<at::Tensor>& /*logits of each pass*/) { return {}; }
    virtual bool wants_weight_grad(const nn::Site&) const { return false; }
    // Receives the gradient (out, in) of a site's frozen weight, summed over the step's micro-batches if need
    // be by the method itself; the tensor is freed after the call.
    virtual void weight_grad(const nn::Site&, const at::Tensor&) {}
    virtual void after_backward(int64_t /*step*/) {}
};

struct MethodContext {
    nn::Model& model;
    const std::vector<nn::Site*>& sites;  // the targets
    nn::ParameterStore& parameters;
    Random random;  // of starting values
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

// "a.b.q_proj" + "ether_u" -> "a.b.q_proj.ether_u", the name of a site's parameter.
inline std::string parameter_name(const nn::Site& site, const char* suffix) {
    return site.name() + "." + suffix;
}

// (rows, columns) float32 values, or (a, b, c), uniform in [-bound, bound).
at::Tensor uniform(at::IntArrayRef shape, double bound, const Random& random);

}  // namespace ether::methods
