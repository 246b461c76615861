// What benches measure with.
#pragma once

#include <c10/core/Device.h>

#include <functional>
#include <vector>

namespace ether::eval {

// Until all that the work asked of the device is done.
double seconds_of(const std::function<void()>& work, c10::Device device = c10::kCPU);

double median(std::vector<double> values);

// Bytes a second that a device reads and writes when it copies its own memory, more than its caches hold.
double copy_bandwidth(c10::Device device);

}  // namespace ether::eval
