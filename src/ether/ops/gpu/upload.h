// Brings tensors to a device, those of mapped files at the speed of the link: a device cannot fetch a file's
// pages, so they pass through page-locked buffers, one of which threads fill while another is on its way.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Event.h>

#include <vector>

namespace ether::ops {

class Upload {
  public:
    explicit Upload(at::Device device) : device_(device) {}

    // The tensor on the device, converted there; itself if nothing is to be done. Its memory may go at once.
    at::Tensor operator()(const at::Tensor& tensor, at::ScalarType dtype);

  private:
    struct Buffer {
        at::Tensor bytes;
        c10::Event sent;
    };
    Buffer& free_buffer();

    at::Device device_;
    std::vector<Buffer> buffers_;
    size_t next_ = 0;
};

}  // namespace ether::ops
