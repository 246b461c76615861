#include "ether/methods/largest_singular.h"

#include <ATen/Functions.h>

#include <algorithm>

#include "ether/methods/method.h"

namespace ether::methods {

SingularValues largest_singular(const at::Tensor& matrix, int64_t count, int64_t rounds,
                                const Random& random) {
    constexpr int64_t kSpare = 8;
    const int64_t width = std::min({count + kSpare, matrix.size(0), matrix.size(1)});
    auto range = std::get<0>(at::linalg_qr(matrix.mm(normal({matrix.size(1), width}, 1, random))));
    for (int64_t i = 0; i < rounds; ++i) {
        range = std::get<0>(at::linalg_qr(matrix.t().mm(range)));
        range = std::get<0>(at::linalg_qr(matrix.mm(range)));
    }
    const auto [u, s, vh] = at::linalg_svd(range.t().mm(matrix), /*full_matrices=*/false);
    return {range.mm(u), s, vh};
}

}  // namespace ether::methods
