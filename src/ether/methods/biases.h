// The base model's biases, trained beside what a method changes: PEFT's option `bias`, of the methods that
// have it there.
#pragma once

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "ether/methods/method.h"

namespace ether::methods {

// The option: "none", "adapted" (those of the adapted layers; also PEFT's words, "lora_only" and its like),
// or "all" of the model.
class BiasChoice {
  public:
    // only: the method's word in PEFT's files for those of the adapted layers.
    explicit BiasChoice(const char* only) : only_(only) {}

    Field field();
    void to_config(nlohmann::json& config) const;

    bool none() const { return value_ == "none"; }
    bool all() const { return value_ == "all"; }
    bool adapted() const { return value_ == "adapted" || value_.ends_with("_only"); }
    // Whether a layer's bias is among them. targets: the adapted layers.
    bool covers(const nn::Site& site, const std::vector<nn::Site*>& targets) const {
        if (!site.linear.bias.defined()) return false;
        return all() || (adapted() && std::find(targets.begin(), targets.end(), &site) != targets.end());
    }
    // An error where it is no such word.
    void check() const;

  private:
    const char* only_;
    std::string value_ = "none";
};

// Copies in the biases' places, which are trained, under PEFT's names. targets: the adapted layers.
void train_biases(const BiasChoice& choice, const std::vector<nn::Site*>& targets,
                  const MethodContext& context);

// A method's options and this one; Options::kBiasOnly is the word for its layers.
template <typename Options>
struct WithBias : Options {
    BiasChoice bias{Options::kBiasOnly};

    Fields fields() override {
        auto fields = Options::fields();
        fields.push_back(bias.field());
        return fields;
    }
    void to_config(nlohmann::json& config) const override {
        Options::to_config(config);
        bias.to_config(config);
    }
};

// A method's adapter that trains biases, too.
template <typename MethodAdapter, typename Options>
class AndBiases : public MethodAdapter {
  public:
    AndBiases(const WithBias<Options>& options, const MethodContext& context)
        : MethodAdapter(options, context), bias_(options.bias), targets_(context.sites) {
        train_biases(bias_, targets_, context);
    }

    bool reads_bias(const nn::Site& site) const override {
        return MethodAdapter::reads_bias(site) || bias_.covers(site, targets_);
    }

  private:
    const BiasChoice bias_;
    const std::vector<nn::Site*> targets_;
};

// Factories of both for Method.
template <typename Options>
std::unique_ptr<MethodOptions> make_options_with_bias() {
    return std::make_unique<WithBias<Options>>();
}
template <typename MethodAdapter, typename Options>
std::unique_ptr<Adapter> make_adapter_with_bias(const MethodOptions& options, const MethodContext& context) {
    return make_adapter<AndBiases<MethodAdapter, Options>, WithBias<Options>>(options, context);
}

}  // namespace ether::methods
