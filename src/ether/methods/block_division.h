// How a method's options cut a layer's input into blocks: by their width or by their number, as PEFT's
// rotations do.
#pragma once

#include "ether/methods/method.h"

namespace ether::methods {

struct BlockDivision {
    int64_t size, count = 0;  // the number, if it is given, wins

    Field size_field(const char* key);
    Field count_field(const char* key);

    // Both given is an error.
    void check(const MethodContext& context, const BlockDivision& by_default) const;
    // Blocks of a site's input; an error that names the option where it does not divide the width, and where
    // neither is given.
    int64_t blocks_at(const nn::Site& site) const;
};

}  // namespace ether::methods
