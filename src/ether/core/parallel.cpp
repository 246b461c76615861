#include "ether/core/parallel.h"

#include <algorithm>
#include <exception>
#include <vector>

#include "ether/core/parallel_backend.h"

namespace ether {

int num_chunks(int64_t n, int64_t grain) {
    if (n <= 0) return 0;
    if (backend::in_parallel()) return 1;
    return static_cast<int>(std::clamp<int64_t>(n / std::max<int64_t>(grain, 1), 1, num_threads()));
}

void parallel_for(int64_t n, int64_t grain, const std::function<void(int, int64_t, int64_t)>& body) {
    const int chunks = num_chunks(n, grain);
    auto run = [&](int chunk) { body(chunk, n * chunk / chunks, n * (chunk + 1) / chunks); };
    if (chunks == 1) {
        run(0);
    } else if (chunks > 1) {
        std::vector<std::exception_ptr> errors(static_cast<size_t>(chunks));  // none may leave its thread
        backend::run(chunks, [&](int chunk) {
            try {
                run(chunk);
            } catch (...) {
                errors[static_cast<size_t>(chunk)] = std::current_exception();
            }
        });
        for (const auto& error : errors)
            if (error) std::rethrow_exception(error);
    }
}

}  // namespace ether
