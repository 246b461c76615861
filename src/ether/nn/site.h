// Linear, a base weight behind its name, and Site, a linear layer that an adapter may change.
// Owned by the model; addresses stay valid as long as it lives. Forward passes may run one at a time.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "ether/nn/forms.h"
#include "ether/nn/pass.h"
#include "ether/ops/linear/linear.h"

namespace ether::nn {

// y = x W^T + b. Weight and bias are the model's tensors, frozen unless they were replaced by trained ones.
struct Linear {
    std::string name;   // module path in transformers' words, e.g. "model.layers.0.self_attn.q_proj"
    at::Tensor weight;  // (out, in)
    at::Tensor bias;    // (out) or undefined

    int64_t in() const { return weight.size(1); }
    int64_t out() const { return weight.size(0); }
};

class Site {
  public:
    Site(Linear linear, int64_t index, int64_t layer, bool is_output)
        : linear(std::move(linear)), index(index), layer(layer), is_output(is_output) {}

    // x (T, in) -> (T, out): y = output(post(W pre(x)) + b) + delta(x) with the forms bound now.
    at::Tensor operator()(const at::Tensor& x, const Pass& pass) const;

    Linear linear;
    const int64_t index;   // among the model's sites
    const int64_t layer;   // block number, -1 outside of blocks
    const bool is_output;  // the model's head: left out of "all-linear"

    SiteForms forms;                  // bound by the adapter before each pass; empty: the base layer
    ops::WeightGradSink weight_grad;  // if set, backward streams the frozen weight's gradient to it
    std::function<void(const at::Tensor& x)> watch;  // if set, sees what the layer's product reads (T, in)
    bool keeps_product = false;                      // in pass.last_product

    const std::string& name() const { return linear.name; }
};

// What several sites make of one value of a graph, up to their products W pre(x). Models put the rest into a
// graph with what follows, so that neither side of a product is a pass over memory of its own. Forms stay
// bound until then.
class Projections {
  public:
    // Runs `rows` for what the products read and for `others`, which are returned by other(i).
    Projections(ops::Rows& rows, ops::Rows::Value x, std::vector<const Site*> sites, const Pass& pass,
                const std::vector<ops::Rows::Value>& others = {});

    const at::Tensor& other(size_t i) const { return others_[i]; }
    // The i-th site's output, y as above.
    ops::Rows::Value finish(size_t i, ops::Rows& rows) const;

  private:
    std::vector<const Site*> sites_;
    std::vector<FormPass> passes_;
    std::vector<at::Tensor> products_, others_;
    // A delta that is not in its site's product: which one, what it reads, and where backward has that from.
    struct Delta {
        size_t k;
        at::Tensor x;
        std::shared_ptr<ops::Remade> again;
    };
    std::vector<std::vector<Delta>> deltas_;
};

}  // namespace ether::nn
