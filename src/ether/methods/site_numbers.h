// Numbers of chosen layers in the place of one for all: PEFT's rank_pattern and its like.
#pragma once

#include "ether/methods/method.h"

namespace ether::methods {

// An option's value at each of the context's sites: that of the first name or expression which fits the end
// of its path, else `otherwise`. JSON keeps no order, so two that fit one site with different numbers are an
// error; so is one that is typed and fits no site. option: a field's name, for messages. Number: int64_t (a
// fraction is an error) or double.
template <typename Number>
BySite<Number> site_numbers(const MethodContext& context, const char* option, const NumbersByName& numbers,
                            Number otherwise);

// The fields: of ranks, and of scales (alpha).
Field rank_pattern_field(NumbersByName* ranks);
Field alpha_pattern_field(NumbersByName* alphas);

}  // namespace ether::methods
