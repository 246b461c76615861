// Composition: several changes of one site as one, and changes in part.
#pragma once

#include "ether/nn/forms.h"

namespace ether::nn {

// What `second` makes of a layer that `first` has changed already: as if it had been merged, W' and b' being
// that layer's. bias: the site's own, (out) or undefined. Always possible; the result holds no more forms
// than both, but for a shift where `first` changes the bias and `second` its product.
SiteForms composed(const SiteForms& first, const SiteForms& second, const at::Tensor& bias);

// The same change `weight` times as large: what is added, scaled. Empty forms stay. An Error of kind
// `adapter` where the change is more than an addition, since no part of a reflection or rotation is one;
// weight 1 is always possible.
SiteForms weighted(const SiteForms& forms, double weight);

}  // namespace ether::nn
