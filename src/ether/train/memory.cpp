#include "ether/train/memory.h"

#include <sys/resource.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <numeric>
#include <string>

#include "ether/core/error.h"

namespace ether::train {
namespace {

double gigabytes(int64_t bytes) { return static_cast<double>(bytes) / 1e9; }

// A "Name:   123 kB" line of a /proc file, in bytes; -1 if absent.
int64_t proc_value(const char* path, const std::string& name) {
    std::ifstream file(path);
    std::string line;
    while (std::getline(file, line))
        if (line.starts_with(name + ":")) return std::stoll(line.substr(name.size() + 1)) * 1024;
    return -1;
}

// The first number of a file; -1 where there is none ("max", no file).
int64_t number_in(const std::string& path) {
    std::ifstream file(path);
    int64_t value = -1;
    return file >> value ? value : -1;
}

// What the control groups that hold this process leave it (version 2: each level has its own limit). Page
// cache that can be dropped is not counted as used.
int64_t available_in_groups() {
    int64_t available = std::numeric_limits<int64_t>::max();
    std::ifstream groups("/proc/self/cgroup");
    for (std::string line; std::getline(groups, line);) {
        if (!line.starts_with("0::")) continue;
        for (std::string path = line.substr(3);; path.resize(path.rfind('/'))) {
            const std::string folder = "/sys/fs/cgroup" + path;
            const int64_t limit = number_in(folder + "/memory.max"),
                          used = number_in(folder + "/memory.current");
            if (limit >= 0 && used >= 0) {
                int64_t cache = 0;
                std::ifstream statistics(folder + "/memory.stat");
                std::string name;
                for (int64_t value = 0; statistics >> name >> value;)
                    if (name == "inactive_file") cache = value;
                available = std::min(available, std::max<int64_t>(0, limit - used + cache));
            }
            if (path.find('/') == std::string::npos) break;
        }
    }
    return available;
}

}  // namespace

LargestBatch largest_batch(std::vector<int64_t> lengths, int64_t batch) {
    std::sort(lengths.rbegin(), lengths.rend());
    lengths.resize(std::min(lengths.size(), static_cast<size_t>(batch)));
    return {std::accumulate(lengths.begin(), lengths.end(), int64_t{0}),
            lengths.empty() ? 0 : lengths.front()};
}

MemoryEstimate estimate_memory(const methods::AdaptedModel& model, const LargestBatch& training,
                               const LargestBatch& evaluation, bool checkpoint_activations) {
    const auto& shape = model.model().shape();
    const int64_t element = model.model().dtype() == at::kBFloat16 ? 2 : 4;
    MemoryEstimate estimate;
    estimate.trained = model.parameters().count() * 4 * 5;  // in float32
    // A block keeps the inputs of its norms, sites, attention and activation: about twelve rows of the hidden
    // size and four of the intermediate size a token; each adapted site its input and its output before the
    // adapter's change.
    const int64_t block = 12 * shape.hidden_size + 4 * shape.intermediate_size;
    int64_t per_token = shape.layers * block;
    for (const auto* site : model.sites()) per_token += site->linear.in() + site->linear.out();
    // One block's values, half as much again for their gradients, and every block's input.
    if (checkpoint_activations)
        per_token = 3 * per_token / (2 * shape.layers) + shape.layers * shape.hidden_size;
    const int64_t logits =
        shape.head == nn::Head::causal_lm ? int64_t{1} << 26 : 0;  // linear_cross_entropy's chunk
    const auto scores = [](int64_t longest) {
        return 3 * 64 * longest * 4 * 64;
    };  // attention tiles of all threads
    // Without gradients a block's values live until the next one.
    estimate.activations =
        logits + std::max(per_token * training.tokens * element + scores(training.longest),
                          block * evaluation.tokens * element + scores(evaluation.longest));
    return estimate;
}

int64_t available_memory() {
    int64_t available = proc_value("/proc/meminfo", "MemAvailable");
    if (available < 0) available = std::numeric_limits<int64_t>::max();
    available = std::min(available, available_in_groups());
    rlimit limit{};
    if (getrlimit(RLIMIT_AS, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY) {
        const int64_t used = std::max<int64_t>(0, proc_value("/proc/self/status", "VmSize"));
        available = std::min(available, std::max<int64_t>(0, static_cast<int64_t>(limit.rlim_cur) - used));
    }
    return available;
}

void check_memory(const MemoryEstimate& estimate, int64_t available) {
    if (estimate.total() <= available) return;
    fail(ErrorKind::memory,
         "this run needs about {:.1f} GB (trained values and optimizer {:.1f}, activations "
         "{:.1f}), but "
         "{:.1f} GB are free; lower --batch (and raise --accumulate to keep the result) or --max-length, or "
         "use --dtype bf16; --force tries all the same",
         gigabytes(estimate.total()), gigabytes(estimate.trained), gigabytes(estimate.activations),
         gigabytes(available));
}

}  // namespace ether::train
