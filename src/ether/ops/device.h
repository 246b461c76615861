// Devices by name, and what there is of them. CUDA is a library that libtorch's wheel holds and that is
// opened when first asked for: one program serves machines with a GPU and without.
#pragma once

#include <c10/core/Device.h>

#include <cstdint>
#include <string>

namespace ether::ops {

// "cpu", "cuda" (the first one), "cuda:1", or "auto": the first GPU that works, else the CPU. An error says
// why a GPU that was asked for by name cannot be used.
at::Device device_named(const std::string& name);

// Returns when all that was asked of the device is done: for measuring time.
void wait_for(at::Device device);

// The most bytes that tensors have taken there at a time; 0 of the CPU, whose process tells that.
int64_t peak_memory(at::Device device);

// Bytes that a run may still take there.
int64_t free_memory(at::Device device);

}  // namespace ether::ops
