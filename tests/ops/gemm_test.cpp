// Products with base weights: the provider's, and those by panels, against double precision.
#include "ether/ops/gemm/gemm.h"

#include <gtest/gtest.h>

#include <limits>

#include "ether/core/parallel.h"
#include "ether/ops/gemm/panels.h"
#include "tensors.h"

namespace ether::ops {
namespace {

using test::near;
using test::normal;

// By panels, whether this machine gains by them or not. w: (out, in), or (in, out).
template <typename T>
at::Tensor by_panels(const at::Tensor& x, const at::Tensor& w, WeightOrder order,
                     const at::Tensor& bias = {}) {
    const int64_t out = w.size(order == WeightOrder::kOutIn ? 0 : 1);
    auto y = at::full({x.size(0), out}, std::numeric_limits<double>::quiet_NaN(), x.options());
    panel_product<T>(x.size(0), out, x.size(1), {x.const_data_ptr<T>(), x.stride(0)},
                     {w.const_data_ptr<T>(), w.stride(0)}, order,
                     bias.defined() ? bias.const_data_ptr<T>() : nullptr, y.template mutable_data_ptr<T>());
    return y;
}

at::Tensor by_panels(const at::Tensor& x, const at::Tensor& w, WeightOrder order,
                     const at::Tensor& bias = {}) {
    return x.scalar_type() == at::kFloat ? by_panels<float>(x, w, order, bias)
                                         : by_panels<c10::BFloat16>(x, w, order, bias);
}

at::Tensor in_double(const at::Tensor& x, const at::Tensor& w, WeightOrder order,
                     const at::Tensor& bias = {}) {
    const auto wide = w.to(at::kDouble);
    const auto y = x.to(at::kDouble).mm(order == WeightOrder::kOutIn ? wide.t() : wide);
    return bias.defined() ? y + bias.to(at::kDouble) : y;
}

struct Kind {
    at::ScalarType dtype;
    WeightOrder order;
};
constexpr Kind kKinds[] = {{at::kFloat, WeightOrder::kOutIn},
                           {at::kBFloat16, WeightOrder::kOutIn},
                           {at::kBFloat16, WeightOrder::kInOut}};

// Sums of `in` values of size 1, of a result of that many roundings.
double tolerance(at::ScalarType dtype) { return dtype == at::kFloat ? 2e-6 : 8e-3; }

at::Tensor weight(const Kind& kind, int64_t out, int64_t in, uint64_t seed) {
    return kind.order == WeightOrder::kOutIn ? normal({out, in}, seed, kind.dtype)
                                             : normal({in, out}, seed, kind.dtype);
}

TEST(PanelProduct, AgreesWithDoubleAtAllSizes) {
    for (const auto& kind : kKinds)
        for (const int64_t rows : {1, 5, 6, 7, 48, 67})
            for (const int64_t out : {16, 48, 64, 80, 208})
                for (const int64_t in :
                     {32, 96, 800, 1600, 3232}) {  // one part, several, and of unequal lengths
                    const auto x = normal({rows, in}, 1, kind.dtype), w = weight(kind, out, in, 2),
                               bias = normal({out}, 3, kind.dtype);
                    EXPECT_TRUE(
                        near(by_panels(x, w, kind.order), in_double(x, w, kind.order), tolerance(kind.dtype)))
                        << rows << " " << out << " " << in;
                    EXPECT_TRUE(near(by_panels(x, w, kind.order, bias), in_double(x, w, kind.order, bias),
                                     tolerance(kind.dtype)))
                        << rows << " " << out << " " << in << " with bias";
                }
}

// Gradients of logits have as many values as there are words: an even number.
TEST(PanelProduct, SumsMayHaveAnyEvenLength) {
    for (const int64_t in : {2, 34, 1534, 1538, 3042, 3070, 32002}) {
        const Kind kind{at::kBFloat16, WeightOrder::kInOut};
        const auto x = normal({13, in}, 1, kind.dtype), w = weight(kind, 80, in, 2);
        EXPECT_TRUE(near(by_panels(x, w, kind.order), in_double(x, w, kind.order), tolerance(kind.dtype)))
            << in;
    }
}

// More sums than are kept at a time.
TEST(PanelProduct, ResultsMayBeWide) {
    const int threads = num_threads();
    set_num_threads(1);
    for (const auto& kind : kKinds) {
        const auto x = normal({600, 1600}, 1, kind.dtype), w = weight(kind, 1040, 1600, 2);
        EXPECT_TRUE(near(by_panels(x, w, kind.order), in_double(x, w, kind.order), tolerance(kind.dtype)));
    }
    set_num_threads(threads);
}

// Operands may be parts of larger ones and begin anywhere.
TEST(PanelProduct, OperandsMayBeParts) {
    for (const auto& kind : kKinds) {
        const auto x = normal({50, 102}, 1, kind.dtype).narrow(1, 3, 96);
        const auto whole = weight(kind, 97, 131, 2);
        const auto w = kind.order == WeightOrder::kOutIn ? whole.narrow(0, 1, 96).narrow(1, 5, 96)
                                                         : whole.narrow(0, 3, 96).narrow(1, 1, 96);
        EXPECT_TRUE(near(by_panels(x, w, kind.order), in_double(x, w, kind.order), tolerance(kind.dtype)));
    }
}

TEST(PanelProduct, BitsDependOnNeitherOtherRowsNorThreads) {
    for (const auto& kind : kKinds) {
        const auto x = normal({517, 800}, 1, kind.dtype), w = weight(kind, 336, 800, 2);
        const int threads = num_threads();
        set_num_threads(1);
        const auto expected = by_panels(x, w, kind.order);
        for (const int count : {2, 3, 7}) {
            set_num_threads(count);
            EXPECT_TRUE(at::equal(by_panels(x, w, kind.order), expected)) << count;
        }
        set_num_threads(threads);
        const auto part = x.narrow(0, 100, 53);
        EXPECT_TRUE(at::equal(by_panels(part, w, kind.order), expected.narrow(0, 100, 53)));
    }
}

TEST(PanelProduct, NanAndInfinityStayInTheirRow) {
    for (const auto& kind : kKinds) {
        auto x = normal({70, 96}, 1, kind.dtype);
        const auto w = weight(kind, 80, 96, 2), expected = by_panels(x, w, kind.order);
        x.select(0, 33).select(0, 7).fill_(std::numeric_limits<float>::quiet_NaN());
        x.select(0, 40).select(0, 8).fill_(std::numeric_limits<float>::infinity());
        const auto y = by_panels(x, w, kind.order);
        EXPECT_TRUE(y.select(0, 33).isnan().all().item<bool>());
        EXPECT_FALSE(y.select(0, 40).isfinite().any().item<bool>());
        for (const auto& [begin, count] : {std::pair{0, 33}, {34, 6}, {41, 29}})
            EXPECT_TRUE(at::equal(y.narrow(0, begin, count), expected.narrow(0, begin, count)));
    }
}

// Whatever the provider chooses.
TEST(Gemm, AgreesWithDouble) {
    for (const auto dtype : {at::kFloat, at::kBFloat16})
        for (const int64_t rows : {0, 1, 11, 12, 130})
            for (const int64_t out : {33, 64, 192})
                for (const int64_t in : {31, 34, 96}) {
                    const auto x = normal({rows, in}, 1, dtype), w = normal({out, in}, 2, dtype),
                               bias = normal({out}, 3, dtype), g = normal({rows, out}, 4, dtype);
                    EXPECT_TRUE(near(gemm_nt(x, w), in_double(x, w, WeightOrder::kOutIn), tolerance(dtype)));
                    EXPECT_TRUE(near(gemm_nt(x, w, bias), in_double(x, w, WeightOrder::kOutIn, bias),
                                     tolerance(dtype)));
                    EXPECT_TRUE(near(gemm_nn(g, w), in_double(g, w, WeightOrder::kInOut), tolerance(dtype)));
                    // Operands in any order.
                    const auto turned = w.t().contiguous().t(), columns = x.t().contiguous().t();
                    EXPECT_TRUE(near(gemm_nt(columns, turned), in_double(x, w, WeightOrder::kOutIn),
                                     tolerance(dtype)));
                    EXPECT_TRUE(
                        near(gemm_nn(g, turned), in_double(g, w, WeightOrder::kInOut), tolerance(dtype)));
                    const auto wider = normal({rows, in + 1}, 5, dtype).narrow(1, 1, in);
                    EXPECT_TRUE(
                        near(gemm_nt(wider, w), in_double(wider, w, WeightOrder::kOutIn), tolerance(dtype)));
                    const auto repeated =
                        x.narrow(0, 0, std::min<int64_t>(rows, 1)).expand({rows ? 20 : 0, in});
                    EXPECT_TRUE(near(gemm_nt(repeated, w), in_double(repeated, w, WeightOrder::kOutIn),
                                     tolerance(dtype)));
                }
}

TEST(Gemm, SizesThatDoNotFitAreErrors) {
    const auto x = normal({20, 64}, 1, at::kFloat), w = normal({32, 96}, 2, at::kFloat);
    EXPECT_ANY_THROW(gemm_nt(x, w));
    EXPECT_ANY_THROW(gemm_nn(x, w));
    EXPECT_ANY_THROW(gemm_nt(x, normal({32, 64}, 2, at::kFloat), normal({31}, 3, at::kFloat)));
}

}  // namespace
}  // namespace ether::ops
