// Bank: the forms of several adapters as one, of which each token of a batch picks its own
// (Pass::adapter_rows).
#pragma once

#include <vector>

#include "ether/nn/forms.h"

namespace ether::nn {

// One site's forms of every adapter, in order of their entries. All have the same forms of the same sizes
// (of an overlay: of the same matrix's): otherwise an Error of kind `adapter`. Tensors are copied, one entry
// after the other in memory.
SiteForms banked(const std::vector<SiteForms>& entries);

}  // namespace ether::nn
