#include "ether/ops/gpu/program.h"

#include <fmt/format.h>

#include <algorithm>

#include "ether/ops/rows/device_code.h"

namespace ether::ops {
namespace {

const char* stored_type(c10::ScalarType dtype) {
    return dtype == c10::kDouble ? "double" : dtype == c10::kFloat ? "float" : "BFloat16";
}

}  // namespace

bool has_device_code(c10::ScalarType dtype) {
    return dtype == c10::kDouble || dtype == c10::kFloat || dtype == c10::kBFloat16;
}

std::string program(const ProgramShape& shape, size_t words, const std::string& body) {
    std::string all = fmt::format(
        "typedef {} P;\nconstexpr bool kRounded = {};\n"
        "constexpr int V = {}, kThreads = {}, kSharedValues = {};\n",
        shape.dtype == c10::kDouble ? "double" : "float", shape.dtype == c10::kBFloat16, shape.chunk,
        shape.threads, std::max<int64_t>(1, shape.shared));
    all += kDeviceCode;
    // Without a number of blocks, the compiler may choose so few registers that most values lie in memory.
    all += fmt::format(
        "typedef {} Stored;\nstruct Arguments {{ unsigned long long word[{}]; }};\n"
        "extern \"C\" __global__ void __launch_bounds__(kThreads, {}) kernel(const Arguments a) {{\n"
        "__shared__ P shared_values[2 * kSharedValues];\n"
        "Scratch shared = {{shared_values, shared_values + kSharedValues}};\n"
        "const Index rows = (Index)a.word[0];\n",
        stored_type(shape.dtype), words, shape.blocks);
    return all + body + "}\n";
}

}  // namespace ether::ops
