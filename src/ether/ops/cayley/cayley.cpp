#include "ether/ops/cayley/cayley.h"

#include <ATen/Functions.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "ether/core/error.h"
#include "ether/core/parallel.h"
#include "ether/ops/composed.h"
#include "ether/ops/dispatch.h"
#include "ether/ops/gemm/tile.h"
#include "ether/ops/isa.h"

namespace ether::ops {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Square matrices of one size, by rows without gaps.
template <typename T>
class Square {
  public:
    explicit Square(int64_t size) : size_(size) {}

    // c = alpha * a b, or more.
    void product(const T* a, const T* b, T* c, T alpha = 1, bool accumulate = false) const {
        tile_product<T>(size_, size_, size_, alpha, {a, size_}, {b, size_}, {c, size_}, accumulate);
    }
    // c = alpha * a^T b
    void transposed_product(const T* a, const T* b, T* c, T alpha = 1) const {
        tile_product<T>(size_, size_, size_, alpha, {a, 1, size_}, {b, size_}, {c, size_});
    }
    void transpose(const T* a, T* to) const {
        for (int64_t i = 0; i < size_; ++i)
            for (int64_t j = 0; j < size_; ++j) to[j * size_ + i] = a[i * size_ + j];
    }
    void add_to_diagonal(T* a, T value) const {
        for (int64_t i = 0; i < size_; ++i) a[i * size_ + i] += value;
    }
    void scale(T* a, T factor) const {
        for (int64_t i = 0; i < count(); ++i) a[i] *= factor;
    }
    // a = a^-1 by Gauss and Jordan, with the largest pivot of each column.
    void invert(T* a) const {
        std::vector<int64_t> from(static_cast<size_t>(size_));
        for_best_isa([&] {
            for (int64_t p = 0; p < size_; ++p) {
                int64_t largest = p;
                for (int64_t i = p + 1; i < size_; ++i)
                    if (std::abs(a[i * size_ + p]) > std::abs(a[largest * size_ + p])) largest = i;
                from[static_cast<size_t>(p)] = largest;
                T* __restrict pivot = a + p * size_;
                if (largest != p) std::swap_ranges(pivot, pivot + size_, a + largest * size_);
                const T inverse = 1 / pivot[p];
                pivot[p] = 1;
                for (int64_t j = 0; j < size_; ++j) pivot[j] *= inverse;
                for (int64_t i = 0; i < size_; ++i) {
                    if (i == p) continue;
                    T* __restrict row = a + i * size_;
                    const T factor = row[p];
                    row[p] = 0;
                    for (int64_t j = 0; j < size_; ++j) row[j] -= factor * pivot[j];
                }
            }
        });
        for (int64_t p = size_; p-- > 0;) {
            const auto other = from[static_cast<size_t>(p)];
            if (other == p) continue;
            for (int64_t i = 0; i < size_; ++i) std::swap(a[i * size_ + p], a[i * size_ + other]);
        }
    }
    int64_t count() const { return size_ * size_; }
    std::vector<T> matrices(int64_t number = 1) const {
        return std::vector<T>(static_cast<size_t>(number * count()));
    }

  private:
    int64_t size_;
};

// R = 2 X - I with X = (I + S)^-1, and dS = -2 X^T dR X^T.
struct Exact {
    template <typename T>
    void forward(Square<T> square, const T* skew, T* rotation) const {
        std::copy_n(skew, square.count(), rotation);
        square.add_to_diagonal(rotation, 1);
        square.invert(rotation);
        square.scale(rotation, 2);
        square.add_to_diagonal(rotation, -1);
    }
    template <typename T>
    void backward(Square<T> square, const T* skew, const T* grad, T* to) const {
        auto inverse = square.matrices(), turned = square.matrices(), half = square.matrices();
        std::copy_n(skew, square.count(), inverse.data());
        square.add_to_diagonal(inverse.data(), 1);
        square.invert(inverse.data());
        square.transpose(inverse.data(), turned.data());
        square.product(grad, turned.data(), half.data());
        square.transposed_product(inverse.data(), half.data(), to, -2);
    }
};

// By Horner: R = P_0, P_j = c_j I + S P_(j+1), P_degree = c_degree I; back, with G_0 = dR:
// dS = sum of G_j P_(j+1)^T, G_(j+1) = S^T G_j.
struct Series {
    int64_t degree;

    template <typename T>
    T coefficient(int64_t j) const {
        return j == 0 || (j == degree && degree > 1) ? 1 : 2;
    }
    // P_j of P_(j+1); null: that is P_degree.
    template <typename T>
    void horner(Square<T> square, int64_t j, const T* skew, const T* next, T* p) const {
        if (next) {
            square.product(skew, next, p);
        } else {
            std::copy_n(skew, square.count(), p);
            square.scale(p, coefficient<T>(degree));
        }
        square.add_to_diagonal(p, coefficient<T>(j));
    }

    template <typename T>
    void forward(Square<T> square, const T* skew, T* rotation) const {
        if (degree == 0) {
            std::fill_n(rotation, square.count(), T{0});
            square.add_to_diagonal(rotation, 1);
        }
        auto places = square.matrices(2);
        const T* next = nullptr;
        for (int64_t j = degree - 1; j >= 0; --j) {
            T* p = j == 0 ? rotation : places.data() + (j % 2) * square.count();
            horner(square, j, skew, next, p);
            next = p;
        }
    }
    template <typename T>
    void backward(Square<T> square, const T* skew, const T* grad, T* to) const {
        // P_1 to P_(degree - 1), in the places of their numbers.
        auto p = square.matrices(degree), turned = square.matrices(), g = square.matrices(2);
        auto at = [&](int64_t j) { return p.data() + j * square.count(); };
        for (int64_t j = degree - 1; j > 0; --j)
            horner(square, j, skew, j + 1 < degree ? at(j + 1) : nullptr, at(j));
        std::fill_n(to, square.count(), T{0});
        for (int64_t j = 0; j < degree; ++j) {
            if (j + 1 < degree) {
                square.transpose(at(j + 1), turned.data());
                square.product(grad, turned.data(), to, 1, /*accumulate=*/true);
                T* next = g.data() + (j % 2) * square.count();
                square.transposed_product(skew, grad, next);
                grad = next;
            } else {
                for (int64_t i = 0; i < square.count(); ++i) to[i] += coefficient<T>(degree) * grad[i];
            }
        }
    }
};

constexpr int64_t kExact = -1;  // in place of a degree

// Calls body(map, square, where a matrix begins) for all matrices.
template <typename T, typename Body>
void for_matrices(const Tensor& skew, int64_t degree, Body&& body) {
    constexpr int64_t kWork = 1 << 18;  // below which another thread costs more than it saves
    const int64_t size = skew.size(1);
    const int64_t grain = std::max<int64_t>(1, kWork / std::max<int64_t>(1, size * size * size));
    const Square<T> square(size);
    parallel_for(skew.size(0), grain, [&](int, int64_t begin, int64_t end) {
        for (int64_t at = begin * size * size; at < end * size * size; at += size * size) {
            if (degree == kExact)
                body(Exact(), square, at);
            else
                body(Series{degree}, square, at);
        }
    });
}

// Calls body(T()) with the tensor's type.
template <typename Body>
void with_type(const Tensor& tensor, Body&& body) {
    dispatch(tensor.scalar_type(), "cayley", [&](auto type) {
        if constexpr (std::is_floating_point_v<decltype(type)>) body(type);
    });
}

struct CayleyFunction : torch::autograd::Function<CayleyFunction> {
    static Tensor forward(AutogradContext* context, const Tensor& skew, int64_t degree) {
        context->save_for_backward({skew});
        context->saved_data["degree"] = degree;
        auto result = at::empty_like(skew);
        with_type(skew, [&](auto type) {
            using T = decltype(type);
            const T* from = skew.const_data_ptr<T>();
            T* to = result.mutable_data_ptr<T>();
            for_matrices<T>(skew, degree, [&](auto map, auto square, int64_t at) {
                map.forward(square, from + at, to + at);
            });
        });
        return result;
    }

    static variable_list backward(AutogradContext* context, variable_list grads) {
        const auto skew = context->get_saved_variables()[0], grad = grads[0].contiguous();
        auto result = at::empty_like(skew);
        with_type(skew, [&](auto type) {
            using T = decltype(type);
            const T *from = skew.const_data_ptr<T>(), *g = grad.template const_data_ptr<T>();
            T* to = result.mutable_data_ptr<T>();
            for_matrices<T>(
                skew, context->saved_data["degree"].toInt(),
                [&](auto map, auto square, int64_t at) { map.backward(square, from + at, g + at, to + at); });
        });
        return {result, {}};
    }
};

// Larger ones are for a library that divides a matrix among threads.
bool is_for_kernel(const Tensor& skew) {
    constexpr int64_t kLargest = 128;
    ETHER_ASSERT(skew.dim() == 3 && skew.size(1) == skew.size(2));
    ETHER_ASSERT(skew.scalar_type() == at::kFloat || skew.scalar_type() == at::kDouble);
    return skew.size(1) <= kLargest && !runs_composed(skew);
}

}  // namespace

Tensor cayley(const Tensor& skew) {
    if (is_for_kernel(skew)) return CayleyFunction::apply(skew.contiguous(), kExact);
    const auto one = at::eye(skew.size(1), skew.options());
    return at::linalg_solve(one + skew, one - skew, /*left=*/false);
}

Tensor cayley_neumann(const Tensor& skew, int64_t degree) {
    ETHER_ASSERT(degree >= 0);
    if (is_for_kernel(skew)) return CayleyFunction::apply(skew.contiguous(), degree);
    const auto one = at::eye(skew.size(1), skew.options()).expand_as(skew);
    const Series series{degree};
    auto sum = one * series.coefficient<double>(degree);
    for (int64_t j = degree - 1; j >= 0; --j) sum = series.coefficient<double>(j) * one + skew.bmm(sum);
    return sum;
}

}  // namespace ether::ops
