// BitFit (Ben Zaken et al., arXiv 2106.10199): trains all biases of the model, norms' included, and nothing
// else. PEFT lacks it; an adapter holds the biases under their own names.
#include "ether/core/error.h"
#include "ether/methods/methods.h"

namespace ether::methods {
namespace {

class Bitfit : public Adapter {
  public:
    Bitfit(const NoOptions&, const MethodContext& context) {
        bool any = false;
        for (const auto& [name, slots] : context.model.tensors()) {
            if (!name.ends_with(".bias")) continue;
            any = true;
            if (context.parameters.find(name)) continue;  // of a module that is trained whole
            train_copy(context.model, context.parameters, name, name);
        }
        if (!any)
            fail(
                ErrorKind::usage,
                "--method bitfit: this {} model has no biases to train; --method ln-tuning trains its norms, "
                "red adds biases",
                context.model.shape().architecture);
    }

    bool reads_bias(const nn::Site&) const override { return true; }
};

}  // namespace

Method bitfit() {
    return {"bitfit",
            "BITFIT",
            "the model's biases",
            3e-3,
            false,
            make_options<NoOptions>,
            make_adapter<Bitfit, NoOptions>,
            ignores_nothing};
}

}  // namespace ether::methods
