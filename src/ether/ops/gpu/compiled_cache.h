// Machine code of kernels, kept from one run to the next: a file a kernel in kernels/ below $ETHER_CACHE,
// else $XDG_CACHE_HOME/ether, else ~/.cache/ether. It only saves time: what cannot be read or written is
// compiled again.
#pragma once

#include <functional>
#include <string>

namespace ether::ops {

// The code kept under this key (all that decides what it is), or what `compile` makes, which is kept from
// then on. Safe for processes that run side by side.
std::string cached_code(const std::string& key, const std::function<std::string()>& compile);

}  // namespace ether::ops
