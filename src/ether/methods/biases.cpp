#include "ether/methods/biases.h"

#include <algorithm>
#include <nlohmann/json.hpp>

namespace ether::methods {

void BiasChoice::from_config(nlohmann::json& config) const {
    const auto found = config.find("bias");
    if (found != config.end() && found->is_string() && found->get<std::string>().ends_with("_only"))
        *found = only_;
}

void train_biases(const BiasChoice& choice, const std::vector<nn::Site*>& targets,
                  const MethodContext& context) {
    if (choice.none()) return;
    constexpr std::string_view suffix = ".bias";
    for (const auto& [name, slots] : context.model.tensors()) {
        if (!name.ends_with(suffix) || context.parameters.find(name)) continue;
        const auto module = name.substr(0, name.size() - suffix.size());
        const bool adapted = std::any_of(targets.begin(), targets.end(),
                                         [&](const nn::Site* site) { return site->name() == module; });
        if (adapted || choice.all())
            train_copy(context.model, context.parameters, name,
                       fmt::format("{}{}{}", module, adapted ? ".base_layer" : "", suffix));
    }
}

}  // namespace ether::methods
