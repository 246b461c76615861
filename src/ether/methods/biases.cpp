#include "ether/methods/biases.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "ether/core/error.h"
#include "ether/core/utf8.h"

namespace ether::methods {

Field BiasChoice::field() {
    return {.name = "bias",
            .value = &value_,
            .help = "biases to train as well: none, adapted (those of adapted layers), or all of the model"};
}

void BiasChoice::to_config(nlohmann::json& config) const {
    if (adapted()) config["bias"] = only_;
}

void BiasChoice::check() const {
    if (!none() && !all() && !adapted())
        fail(ErrorKind::usage, "--bias: \"{}\" is not known, expected none, adapted or all",
             printable(value_));
}

void train_biases(const BiasChoice& choice, const std::vector<nn::Site*>& targets,
                  const MethodContext& context) {
    choice.check();
    if (choice.none()) return;
    constexpr std::string_view suffix = ".bias";
    bool found = false;
    for (const auto& [name, slots] : context.model.tensors()) {
        if (!name.ends_with(suffix)) continue;
        const auto module = name.substr(0, name.size() - suffix.size());
        const bool adapted = std::any_of(targets.begin(), targets.end(),
                                         [&](const nn::Site* site) { return site->name() == module; });
        if (!adapted && !choice.all()) continue;
        found = true;
        if (!context.parameters.find(name))
            train_copy(context.model, context.parameters, name,
                       fmt::format("{}{}{}", module, adapted ? ".base_layer" : "", suffix));
    }
    if (!found && !context.loading)
        fail(ErrorKind::usage, "--bias {}: {} no biases; leave it out", choice.all() ? "all" : "adapted",
             choice.all() ? "this model has" : "the adapted layers have");
}

}  // namespace ether::methods
