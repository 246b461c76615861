// Methods that train base tensors as they are: full fine-tuning (all of them), and head (none: only the
// modules that every method trains whole, e.g. a new classifier), against which adapters are judged.
#include "ether/methods/methods.h"

namespace ether::methods {
namespace {

struct Full : Adapter {
    bool reads_weights() const override { return true; }
};

}  // namespace

Method head() {
    return {"head",
            "HEAD",
            "nothing but the task's head",
            1e-2,
            false,
            make_options<NoOptions>,
            [](const MethodOptions&, const MethodContext&) { return std::make_unique<Adapter>(); },
            ignores_nothing};
}

Method full() {
    return {"full",
            "FULL",
            "full fine-tuning: every weight of the model",
            5e-5,
            false,
            make_options<NoOptions>,
            [](const MethodOptions&, const MethodContext& context) {
                for (const auto& [name, slots] : context.model.tensors()) {
                    if (context.parameters.find(name)) continue;  // a head that is trained anyway
                    train_copy(context.model, context.parameters, name, name, nn::ParameterGroup::base);
                }
                return std::unique_ptr<Adapter>(std::make_unique<Full>());
            },
            ignores_nothing};
}

}  // namespace ether::methods
