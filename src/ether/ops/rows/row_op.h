// RowOp: an operation that treats each token by itself, as plain kernels on a few rows at a time, and once
// more composed of libtorch's operations, for devices without kernels of ours (ops/composed.h). Rows (rows.h)
// strings them together; an operation knows nothing of autograd, threads or its neighbours.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

namespace ether::ops {

inline constexpr size_t kMaxArguments = 2, kMaxParameters = 2;

// Rows first..first+count of the batch. Row-major, without gaps; widths are the operation's own business.
template <typename P>
struct RowTile {
    int64_t first, count;
    std::array<const P*, kMaxArguments> x;  // null where backward does not read it
    std::array<const P*, kMaxParameters> parameters;
};

// What backward makes of grad_y: grad_x is overwritten, grad_parameters added to; null where nobody wants it.
template <typename P>
struct RowGradients {
    const P* y;
    std::array<P*, kMaxArguments> x;
    std::array<P*, kMaxParameters> parameters;
};

class RowOp {
  public:
    virtual ~RowOp() = default;

    // Trained or frozen, contiguous, in the accumulation dtype.
    std::vector<at::Tensor> parameters;

    virtual int64_t width(int64_t argument_width) const { return argument_width; }
    // Whether backward reads an argument's value; with_parameters: some parameter wants its gradient.
    virtual bool reads_arguments(bool with_parameters) const = 0;
    // Whether each argument's gradient is the result's.
    virtual bool passes_gradient() const { return false; }

    // The whole result, (T, width), differentiable in arguments and parameters; x: each (T, argument's
    // width), parameters: those above, or others in their place.
    virtual at::Tensor composed(at::TensorList x, at::TensorList parameters) const = 0;

    // What a kernel of a GPU (gpu.h) is told of the operation.
    struct DeviceCode {
        const char* name;            // of the struct in the operation's .cuh, a template of the row's width
        std::vector<int> constants;  // and of these; where there are parameters also of whether they are held
        int64_t piece = 0;           // neighbouring values that sums are taken over, 0: whole rows
        int64_t sums = 0;            // made at once
        int64_t distance = 0;        // of columns that are exchanged between threads, 0: none are
        std::vector<uint64_t> words;  // pointers and integers
        std::vector<double> numbers;
        int64_t held = 0;  // rows of parameters that a thread may keep in registers, 0: none, as of a bank
        bool adds_up = false;  // the gradients of both parameters, where they are one tensor
        bool trains = true;    // whether there are gradients of its parameters
    };
    // None: graphs that hold the operation are composed.
    virtual std::optional<DeviceCode> device_code() const { return {}; }

    virtual void forward(const RowTile<float>& tile, float* y) const = 0;
    virtual void forward(const RowTile<double>& tile, double* y) const = 0;
    virtual void backward(const RowTile<float>& tile, const RowGradients<float>& grad) const = 0;
    virtual void backward(const RowTile<double>& tile, const RowGradients<double>& grad) const = 0;
};

// The address of a tensor's values, as a word of device code; of an absent one 0.
inline uint64_t address(const at::Tensor& x) {
    return x.defined() ? reinterpret_cast<uint64_t>(x.const_data_ptr()) : 0;
}

// Writes the four virtual functions by two templates, run(tile, y) and run_back(tile, grad), of `Self`.
template <typename Self>
class RowOpOf : public RowOp {
  public:
    void forward(const RowTile<float>& tile, float* y) const final { self().run(tile, y); }
    void forward(const RowTile<double>& tile, double* y) const final { self().run(tile, y); }
    void backward(const RowTile<float>& tile, const RowGradients<float>& grad) const final {
        self().run_back(tile, grad);
    }
    void backward(const RowTile<double>& tile, const RowGradients<double>& grad) const final {
        self().run_back(tile, grad);
    }

  private:
    const Self& self() const { return static_cast<const Self&>(*this); }
};

}  // namespace ether::ops
