// Kernels of GPUs. That each graph which models run compiles for the architectures we support is tested where
// the compiler is found (it needs no GPU); what the kernels compute, by all tests of this room with
// ETHER_EMULATED set, and here on a GPU, where there is one, beside the CPU in double.
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "ether/core/error.h"
#include "ether/ops/attention/attention.h"
#include "ether/ops/cross_entropy/linear_cross_entropy.h"
#include "ether/ops/device.h"
#include "ether/ops/dropout/dropout.h"
#include "ether/ops/elementwise/elementwise.h"
#include "ether/ops/gelu/gelu.h"
#include "ether/ops/gpu/graph.h"
#include "ether/ops/gpu/launcher.h"
#include "ether/ops/gpu/upload.h"
#include "ether/ops/norm/layer_norm.h"
#include "ether/ops/norm/rms_norm.h"
#include "ether/ops/rank1/rank1.h"
#include "ether/ops/rotary/rotary.h"
#include "ether/ops/swiglu/swiglu.h"
#include "ether/ops/unit/unit.h"
#include "io/test_files.h"
#include "tensors.h"

namespace ether::ops {
namespace {

using at::Tensor;
using Tensors = std::vector<Tensor>;
using Value = Rows::Value;

at::ScalarType wide(at::ScalarType dtype) { return dtype == at::kBFloat16 ? at::kFloat : dtype; }

// A graph of x, y (T, width) with reflections and a vector.
struct Graph {
    const char* name;
    std::vector<Value> (*build)(Rows& rows, Value x, Value y, const Tensor& vectors, const Tensor& weight);
};

Value reflect(Rows& rows, Value x, const Tensor& vectors) {
    const auto units = unit(vectors);
    return rank1(rows, x, units, units, {-1, 1});
}

const Graph kGraphs[] = {
    {"what attention reads",
     [](Rows& rows, Value x, Value y, const Tensor& vectors, const Tensor& weight) {
         const auto sum = add(rows, x, reflect(rows, y, vectors)), normal = rms_norm(rows, sum, weight, 1e-5);
         return std::vector{sum, reflect(rows, normal, vectors), reflect(rows, normal, vectors.flip(0))};
     }},
    {"a BERT's sublayer",
     [](Rows& rows, Value x, Value y, const Tensor& vectors, const Tensor& weight) {
         const auto sum =
             add(rows, x, dropout(rows, shift(rows, reflect(rows, y, vectors), weight), 0.1, Random(1)));
         return std::vector{reflect(rows, gelu(rows, layer_norm(rows, sum, weight, weight, 1e-5)), vectors)};
     }},
    {"a gated sublayer",
     [](Rows& rows, Value x, Value y, const Tensor& vectors, const Tensor& weight) {
         const auto gate = rank1(rows, x, unit(vectors), unit(vectors.flip(0)), {-1, 1}),
                    up = reflect(rows, scale(rows, y, weight), vectors);
         return std::vector{reflect(rows, swiglu(rows, gate, up), vectors)};
     }},
    {"heads",
     [](Rows& rows, Value x, Value y, const Tensor& vectors, const Tensor& weight) {
         const int64_t half = rows.width(x) / (rows.width(x) % 64 ? 12 : 8);
         const auto angles =
             at::arange(8, weight.options()).outer(at::arange(half, weight.options())).mul(0.01);
         const auto positions = at::arange(rows.tokens(), weight.options().dtype(at::kLong)).remainder(8);
         const auto cos = angles.cos(), sin = angles.sin();
         return std::vector{
             rotary(rows, reflect(rows, x, vectors), positions, cos, sin),
             rotary(rows, rms_norm(rows, y, weight.narrow(0, 0, 2 * half), 1e-5), positions, cos, sin)};
     }},
};

struct Size {
    int64_t width, blocks;
};
// Segments of one warp and part of one, of several, of several and a part, and whole rows.
constexpr Size kSizes[] = {{4096, 4}, {4096, 32}, {1024, 4}, {1152, 2}, {576, 4},
                           {576, 32}, {384, 1},   {60, 3},   {11008, 4}};

// Outputs, then the gradients of x, y, vectors and weight.
Tensors results(const Graph& graph, const Tensors& inputs) {
    Tensors leaves;
    for (const auto& input : inputs) leaves.push_back(input.detach().requires_grad_(true));
    Rows rows;
    auto all =
        rows.run(graph.build(rows, rows.input(leaves[0]), rows.input(leaves[1]), leaves[2], leaves[3]));
    Tensor loss;
    for (size_t i = 0; i < all.size(); ++i) {
        const auto wide = all[i].to(leaves[3].scalar_type());
        const auto part =
            (wide * test::normal(wide.sizes(), 10 + i, wide.scalar_type()).to(wide.device())).sum();
        loss = loss.defined() ? loss + part : part;
    }
    loss.backward();
    for (const auto& leaf : leaves) all.push_back(leaf.grad());
    return all;
}

Tensors inputs_of(Size size, int64_t tokens, at::ScalarType dtype) {
    return {test::normal({tokens, size.width}, 1, dtype), test::normal({tokens, size.width}, 2, dtype),
            test::normal({2, size.blocks, size.width / size.blocks}, 3, wide(dtype)),
            test::normal({size.width}, 4, wide(dtype))};
}

// Compiles what it is given, and runs nothing.
class Compiling : public Kernels {
  public:
    explicit Compiling(int* count) : count_(count) {}
    Kernel compile(const std::string& source, int, int64_t) override {
        for (const char* architecture : {"sm_75", "sm_80", "sm_90"})
            EXPECT_FALSE(compile_cuda(source, architecture).empty());
        ++*count_;
        return {};
    }
    void launch(const Kernel&, int64_t, const std::vector<uint64_t>&) override {}
    int processors() const override { return 1; }
    int64_t shared_bytes() const override { return 160 << 10; }
    int64_t registers() const override { return 64 << 10; }

  private:
    int* count_;
};

// By graph and dtype.
class GpuGraph : public testing::TestWithParam<std::tuple<int, at::ScalarType>> {
  protected:
    const Graph& graph() const { return kGraphs[std::get<0>(GetParam())]; }
    at::ScalarType dtype() const { return std::get<1>(GetParam()); }
};
INSTANTIATE_TEST_SUITE_P(, GpuGraph,
                         testing::Combine(testing::Range(0, 4),
                                          testing::Values(at::kDouble, at::kFloat, at::kBFloat16)));

TEST_P(GpuGraph, CompilesForAllArchitectures) {
    if (const auto missing = missing_compiler(); !missing.empty()) GTEST_SKIP() << missing;
    if (kernels_of(at::kCPU)) GTEST_SKIP() << "the emulation has its own compiler";
    int compiled = 0;
    run_cpu_kernels_by(std::make_unique<Compiling>(&compiled));
    for (const auto size : kSizes) {
        if (dtype() == at::kDouble && size.width > 4096) continue;  // composed: too much shared memory
        const int before = compiled;
        results(graph(), inputs_of(size, 1, dtype()));
        EXPECT_GE(compiled, before + 2) << graph().name << " of width " << size.width << " is composed";
    }
    run_cpu_kernels_by(nullptr);
}

at::Device gpu() { return kernels_of(at::kCPU) ? at::kCPU : device_named("auto"); }
#define ETHER_NEEDS_GPU() \
    if (!kernels_of(gpu())) GTEST_SKIP() << "no GPU, or no compiler for it: " << missing_compiler()

TEST_P(GpuGraph, AgreesWithTheCpuInDouble) {
    ETHER_NEEDS_GPU();
    for (const auto size : kSizes)
        for (const int64_t tokens : {1, 37, 1000}) {
            if (tokens == 1000 && size.width != 576) continue;
            // An emulation is slow.
            if (gpu().is_cpu() && (tokens == 1000 || size.width > 1152 || (size.width > 576 && tokens > 1)))
                continue;
            auto inputs = inputs_of(size, tokens, dtype()), on_gpu = inputs;
            for (auto& input : inputs) input = input.to(at::kDouble);
            for (auto& input : on_gpu) input = input.to(gpu());
            auto emulation = run_cpu_kernels_by(nullptr);
            const auto expected = results(graph(), inputs);
            run_cpu_kernels_by(std::move(emulation));
            const auto found = results(graph(), on_gpu), repeated = results(graph(), on_gpu);
            const double tolerance = dtype() == at::kDouble ? 1e-12 : dtype() == at::kFloat ? 3e-5 : 2e-2;
            for (size_t i = 0; i < expected.size(); ++i) {
                EXPECT_TRUE(test::near(found[i].cpu(), expected[i], tolerance))
                    << graph().name << ", width " << size.width << ", blocks " << size.blocks << ", tokens "
                    << tokens << ", result " << i;
                EXPECT_TRUE(found[i].equal(repeated[i]))
                    << "another value when repeated: " << graph().name << ", " << i;
            }
        }
}

struct AttentionCase {
    at::ScalarType dtype;
    int64_t head_dim;
    bool causal;
    int64_t window;
    double dropout;
    bool more_keys;  // than queries
};

// The result, then the gradients of q, k and v.
Tensors attention_results(const AttentionCase& of, at::Device device, at::ScalarType dtype) {
    const std::vector<int32_t> query_ends = {0, 5, 6, 70, 128}, key_ends = {0, 9, 14, 78, 150};
    const auto offsets = [&](const std::vector<int32_t>& ends) {
        return at::tensor(at::ArrayRef<int32_t>(ends), at::kInt).to(device);
    };
    AttentionOptions options{.heads = 6, .kv_heads = 2, .scale = 0.125, .causal = of.causal};
    options.window = of.window;
    options.dropout = of.dropout;
    options.random = Random(3);
    options.dropout_row = 7;
    options.longest_query = options.longest_key = 64;
    if (of.more_keys) options.longest_key = 72;
    const auto tensor = [&](int64_t tokens, int64_t heads, uint64_t seed) {
        return test::normal({tokens, heads * of.head_dim}, seed, of.dtype)
            .to(device, dtype)
            .requires_grad_(true);
    };
    const int64_t keys = of.more_keys ? 150 : 128;
    const auto q = tensor(128, 6, 1), k = tensor(keys, 2, 2), v = tensor(keys, 2, 3);
    const auto y =
        attention(q, k, v, offsets(query_ends), offsets(of.more_keys ? key_ends : query_ends), options);
    y.mul(test::normal(y.sizes(), 9, dtype).to(device)).sum().backward();
    return {y, q.grad(), k.grad(), v.grad()};
}

TEST(Gpu, AttentionAgreesWithTheCpu) {
    ETHER_NEEDS_GPU();
    std::vector<AttentionCase> cases;
    for (const auto dtype : {at::kDouble, at::kFloat, at::kBFloat16})
        for (const int64_t head_dim : {24, 64, 5}) {
            cases.push_back({dtype, head_dim, false, 0, 0, false});
            cases.push_back({dtype, head_dim, true, 0, 0.2, false});
            cases.push_back({dtype, head_dim, true, 7, 0, true});
            cases.push_back({dtype, head_dim, false, 0, 0.2, true});
        }
    for (const auto& one : cases) {
        const auto found = attention_results(one, gpu(), one.dtype),
                   repeated = attention_results(one, gpu(), one.dtype),
                   expected = attention_results(one, at::kCPU, at::kDouble);
        const double tolerance = one.dtype == at::kDouble ? 1e-12 : one.dtype == at::kFloat ? 1e-5 : 2e-2;
        for (size_t i = 0; i < 4; ++i) {
            EXPECT_TRUE(test::near(found[i].cpu(), expected[i], tolerance))
                << one.dtype << " head_dim " << one.head_dim << " causal " << one.causal << " window "
                << one.window << " dropout " << one.dropout << " more keys " << one.more_keys << " result "
                << i;
            EXPECT_TRUE(found[i].equal(repeated[i])) << "another value when repeated: " << i;
        }
    }
}

// The loss, then the gradients of hidden and weight.
Tensors loss_results(at::Device device, at::ScalarType dtype, at::ScalarType own) {
    const auto hidden = test::normal({50, 64}, 1, dtype).to(device, own).requires_grad_(true),
               weight = test::normal({300, 64}, 2, dtype).to(device, own).requires_grad_(true);
    auto targets = at::arange(50, at::kLong).mul(5);
    targets[7] = -100;
    const auto loss = linear_cross_entropy(hidden, weight, targets.to(device));
    loss.backward();
    return {loss, hidden.grad(), weight.grad()};
}

TEST(Gpu, TheLossAgreesWithTheCpu) {
    ETHER_NEEDS_GPU();
    for (const auto dtype : {at::kDouble, at::kFloat, at::kBFloat16}) {
        const auto found = loss_results(gpu(), dtype, dtype),
                   expected = loss_results(at::kCPU, dtype, at::kDouble);
        const double tolerance = dtype == at::kDouble ? 1e-12 : dtype == at::kFloat ? 1e-5 : 2e-2;
        for (size_t i = 0; i < 3; ++i)
            EXPECT_TRUE(test::near(found[i].cpu(), expected[i], tolerance)) << dtype << i;
    }
}

TEST(Gpu, TensorsArriveWholeInAnyDtype) {
    ETHER_NEEDS_GPU();
    Upload upload(gpu());
    for (const int64_t size : {int64_t{3}, int64_t{1} << 20, (int64_t{65} << 20) / 2 + 1})
        for (const auto dtype : {at::kFloat, at::kBFloat16}) {
            const auto there = upload(test::normal({size}, 1, at::kFloat).to(at::kBFloat16), dtype);
            EXPECT_TRUE(there.is_cuda());
            EXPECT_TRUE(there.cpu().equal(test::normal({size}, 1, at::kFloat).to(at::kBFloat16).to(dtype)))
                << size << dtype;
        }
    const auto there = at::ones({5}, at::TensorOptions(gpu()));
    EXPECT_TRUE(upload(there, at::kFloat).is_same(there));
}

// Forward, backward and a product, by kernels of ours and of libtorch.
TEST(Gpu, RecordedWorkIsRepeatedOnNewValues) {
    ETHER_NEEDS_GPU();
    const auto x = test::normal({100, 64}, 1, at::kFloat).to(gpu()),
               weight = test::normal({64, 64}, 2, at::kFloat).to(gpu()),
               vectors = test::normal({2, 4, 16}, 3, at::kFloat).to(gpu()).requires_grad_(true);
    const auto results = [&]() -> Tensors {
        Rows rows;
        const auto y = rows.run(reflect(rows, rows.input(x.mm(weight)), vectors));
        return {y.detach(), torch::autograd::grad({y.square().sum()}, {vectors})[0]};
    };
    results();  // compiles
    Tensors repeated;
    const auto graph = record(gpu(), [&] { repeated = results(); });
    ASSERT_TRUE(graph);
    for (int i = 0; i < 3; ++i) {
        const auto expected = results();
        graph->replay();
        for (size_t k = 0; k < 2; ++k) EXPECT_TRUE(repeated[k].equal(expected[k])) << i << k;
        const at::NoGradGuard no_grad;
        x.mul_(1.1).add_(0.1), vectors.add_(0.5);
    }
    EXPECT_TRUE(graph->intact());
}

TEST(Gpu, WorkThatWaitsForTheDeviceIsNotRecorded) {
    ETHER_NEEDS_GPU();
    const auto x = at::ones({4}, at::TensorOptions(gpu()));
    EXPECT_FALSE(record(gpu(), [&] { x.sum().item<float>(); }));
    EXPECT_FAILS(data, "of the work", record(gpu(), [&] { fail(ErrorKind::data, "of the work"); }));
    EXPECT_EQ(x.sum().item<float>(), 4);
    EXPECT_TRUE(record(gpu(), [&] { x.sum(); }));
}

TEST(Gpu, AttentionAndTheLossCompileForAllArchitectures) {
    if (const auto missing = missing_compiler(); !missing.empty()) GTEST_SKIP() << missing;
    if (kernels_of(at::kCPU)) GTEST_SKIP() << "the emulation has its own compiler";
    int compiled = 0;
    run_cpu_kernels_by(std::make_unique<Compiling>(&compiled));
    for (const auto dtype : {at::kDouble, at::kFloat, at::kBFloat16}) {
        loss_results(at::kCPU, dtype, dtype);
        for (const int64_t head_dim : {5, 32, 64, 128})
            attention_results({dtype, head_dim, true, 0, 0.1, false}, at::kCPU, dtype);
    }
    run_cpu_kernels_by(nullptr);
    EXPECT_EQ(compiled, 3 * (1 + 4 * 3));
}

}  // namespace
}  // namespace ether::ops
