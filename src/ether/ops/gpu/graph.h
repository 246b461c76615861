// Work of a device, recorded once and started as a whole from then on: a step of a small model has two
// thousand kernels, which take longer to start than to run.
#pragma once

#include <c10/core/Device.h>

#include <functional>
#include <memory>

namespace ether::ops {

class DeviceGraph {
  public:
    virtual ~DeviceGraph() = default;
    // Starts the work again, in the order of libtorch's own, on the tensors that it was recorded on.
    virtual void replay() = 0;
    // Whether all memory that it uses is still its own; a graph that lost some must not be replayed.
    virtual bool intact() const = 0;
};

// Whether work of that device can be recorded. The environment variable ETHER_GRAPHS=0 forbids it.
bool can_record(c10::Device device);

// Records what `work` starts on the device; nothing of it runs before replay(). Tensors that it made and that
// outlive it get new values by each replay. Numbers that it computed on the host stay what they are. Null
// where it does what no graph can hold, such as waiting for the device.
std::unique_ptr<DeviceGraph> record(c10::Device device, const std::function<void()>& work);

// For tests: the CPU's work can be "recorded" too; it runs then and again at each replay.
void record_cpu_work(bool allowed);

}  // namespace ether::ops
