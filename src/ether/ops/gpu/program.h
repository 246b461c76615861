// The text of a kernel's program.
#pragma once

#include <c10/core/ScalarType.h>

#include <string>

namespace ether::ops {

// Whether the device code knows values of this dtype.
bool has_device_code(c10::ScalarType dtype);

// What the device code (*.cuh) is compiled with.
struct ProgramShape {
    c10::ScalarType dtype;  // of what lies in memory: float64, float32 or bfloat16
    int64_t chunk;          // V, neighbouring values that a thread holds: 1, 2, 4 or 8
    int64_t threads;        // of a block
    int64_t shared;         // values that its threads tell each other at a time
    int64_t blocks = 1;     // that a processor is to hold, as far as registers go
};

// All operations' device code and a kernel with this body, which finds its arguments in a.word[0..words), the
// first of which is `rows`, and shared memory at `shared`.
std::string program(const ProgramShape& shape, size_t words, const std::string& body);

}  // namespace ether::ops
