#include "ether/ops/gpu/upload.h"

#include <ATen/DeviceAccelerator.h>
#include <ATen/Functions.h>

#include <algorithm>
#include <cstring>

#include "ether/core/parallel.h"

namespace ether::ops {
namespace {

constexpr int64_t kBufferBytes = 32 << 20, kThreadBytes = 1 << 20;
constexpr size_t kBuffers = 2;

}  // namespace

Upload::Buffer& Upload::free_buffer() {
    if (buffers_.size() < kBuffers) {
        const auto options = at::TensorOptions(at::kByte).pinned_memory(true);
        return buffers_.emplace_back(Buffer{at::empty({kBufferBytes}, options), c10::Event(device_.type())});
    }
    auto& buffer = buffers_[next_++ % kBuffers];
    buffer.sent.synchronize();
    return buffer;
}

at::Tensor Upload::operator()(const at::Tensor& tensor, at::ScalarType dtype) {
    if (!device_.is_cuda() || !tensor.is_cpu() || tensor.nbytes() < kThreadBytes || !tensor.is_contiguous())
        return tensor.to(device_, dtype);
    const auto there = at::empty(tensor.sizes(), tensor.options().device(device_));
    const auto to = there.flatten().view(at::kByte);
    const auto* from = static_cast<const std::byte*>(tensor.const_data_ptr());
    const auto total = static_cast<int64_t>(tensor.nbytes());
    for (int64_t begin = 0; begin < total; begin += kBufferBytes) {
        const int64_t size = std::min(kBufferBytes, total - begin);
        auto& buffer = free_buffer();
        auto* bytes = static_cast<std::byte*>(buffer.bytes.mutable_data_ptr());
        parallel_for(size, kThreadBytes, [&](int, int64_t first, int64_t end) {
            std::memcpy(bytes + first, from + begin + first, static_cast<size_t>(end - first));
        });
        to.narrow(0, begin, size).copy_(buffer.bytes.narrow(0, 0, size), /*non_blocking=*/true);
        buffer.sent.record(at::accelerator::getCurrentStream(device_.index()));
    }
    return there.to(dtype);
}

}  // namespace ether::ops
