#include "ether/nn/site.h"

#include "ether/ops/dropout/dropout.h"

namespace ether::nn {

at::Tensor Site::operator()(const at::Tensor& x, const Pass& pass) const {
    if (forms.empty()) return ops::linear(x, linear.weight, linear.bias, weight_grad);
    const FormPass form_pass{pass.training, pass.stream(index, "forms"), pass.adapter_rows, pass.first_token};
    const auto input =
        pass.training ? ops::dropout(x, forms.input_dropout, pass.stream(index, "input"), pass.first_token)
                      : x;
    const auto h = apply_chain(forms.pre, input, form_pass);
    at::Tensor y;
    if (forms.post.empty()) {
        y = ops::linear(h, linear.weight, linear.bias, weight_grad);
    } else {
        y = apply_chain(forms.post, ops::linear(h, linear.weight, {}, weight_grad), form_pass);
        if (linear.bias.defined()) y = y + linear.bias;
    }
    y = apply_chain(forms.output, y, form_pass);
    for (const auto& form : forms.delta) y = y + apply_form(form, input, form_pass);
    return y;
}

}  // namespace ether::nn
