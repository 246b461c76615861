// The dropouts of LoHa and LoKr in training, as in PEFT's lycoris_utils: of rows of a layer's change, and of
// the whole change of a layer.
#pragma once

#include "ether/methods/method.h"

namespace ether::methods {

struct DeltaDropout {
    double rank = 0, module = 0;  // probabilities
    bool scaled = false;          // rows that stay are scaled up, so that their mean stays

    Fields fields();
    // A pass's change of a site, in part.
    nn::SiteForms operator()(nn::SiteForms forms, const nn::Site& site, const nn::Pass& pass) const;
};

}  // namespace ether::methods
