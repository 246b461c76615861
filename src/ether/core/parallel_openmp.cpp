#include <omp.h>

#include "ether/core/parallel.h"
#include "ether/core/parallel_backend.h"

namespace ether {

int num_threads() { return omp_get_max_threads(); }

void set_num_threads(int count) { omp_set_num_threads(count); }

namespace backend {

bool in_parallel() { return omp_in_parallel(); }

void run(int count, const std::function<void(int)>& body) {
#pragma omp parallel for num_threads(count) schedule(static, 1)
    for (int i = 0; i < count; ++i) body(i);
}

}  // namespace backend
}  // namespace ether
