// Numbers of chosen layers in the place of one for all: PEFT's rank_pattern and its like.
#pragma once

#include "ether/methods/method.h"
#include "ether/methods/targets.h"

namespace ether::methods {

// An option's value at each target.
template <typename Number>
struct SiteNumbers {
    BySite<Number> sites;
    Number embeddings;

    const Number& operator[](const nn::Site& site) const { return sites[site]; }
};

// The number of the first name or expression which fits the end of a target's path, else `otherwise`. Of a
// file, whose keys PEFT sorts, the first in that order. Two that are typed and fit one target with different
// numbers are an error; so is one that is typed and fits none. option: a field's name, for messages. form: as
// in path_end. Number: int64_t (a fraction is an error) or double.
template <typename Number>
SiteNumbers<Number> site_numbers(const MethodContext& context, const char* option,
                                 const NumbersByName& numbers, Number otherwise, const char* form = kPathEnd);

// The fields: of ranks, and of scales (alpha).
Field rank_pattern_field(NumbersByName* ranks);
Field alpha_pattern_field(NumbersByName* alphas);

}  // namespace ether::methods
