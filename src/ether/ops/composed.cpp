#include "ether/ops/composed.h"

#include <cstdlib>

namespace ether::ops {

bool runs_composed(const at::Tensor& x) {
    static const bool everywhere = std::getenv("ETHER_COMPOSED") != nullptr;
    return everywhere || !x.is_cpu();
}

}  // namespace ether::ops
