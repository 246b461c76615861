#include "ether/ops/attention/gpu.h"

#include <ATen/ops/empty_like.h>
#include <fmt/format.h>

#include <algorithm>
#include <bit>

#include "ether/core/random.h"
#include "ether/ops/dispatch.h"
#include "ether/ops/gpu/launcher.h"
#include "ether/ops/gpu/program.h"
#include "ether/ops/rows/row_op.h"

namespace ether::ops {
namespace {

constexpr int kThreads = 128;
constexpr int64_t kTile = 32;                        // as in attention.cuh
constexpr int64_t kWidestWindow = int64_t{1} << 30;  // an int with room for a position

enum class Pass { forward, backward_q, backward_kv };

// What a block keeps in shared memory: tiles of rows of one head, and scores of tiles (attention.cuh).
int64_t shared_bytes(Pass pass, int64_t head_dim, at::ScalarType dtype) {
    const int64_t heads = pass == Pass::forward ? 3 : 4, scores = pass == Pass::backward_kv ? 2 : 1;
    return (heads * kTile * (head_dim + 1) + scores * kTile * (kTile + 1)) *
           static_cast<int64_t>(at::elementSize(accumulate_dtype(dtype)));
}

// Arguments: the number of items, the fields of Attention, then the pass's tensors.
std::string source(Pass pass, int64_t head_dim, at::ScalarType dtype) {
    std::string body =
        "const Attention call = {(const int*)a.word[1], (const int*)a.word[2], (int)a.word[3], "
        "(int)a.word[4], (int)a.word[5], a.word[6] != 0, (int)a.word[7], "
        "(P)__longlong_as_double(a.word[8]), a.word[9], a.word[10], (unsigned)a.word[11], "
        "(P)__longlong_as_double(a.word[12])};\n";
    const char* name = pass == Pass::forward      ? "attention_forward"
                       : pass == Pass::backward_q ? "attention_backward_q"
                                                  : "attention_backward_kv";
    // Of each tensor, whether it is of the accumulation dtype.
    const std::vector<bool> wide = pass == Pass::forward      ? std::vector<bool>{0, 0, 0, 0, 1}
                                   : pass == Pass::backward_q ? std::vector<bool>{0, 0, 0, 0, 0, 1, 1, 0}
                                                              : std::vector<bool>{0, 0, 0, 0, 1, 1, 0, 0};
    body += fmt::format("{}<{}>(call, rows", name, head_dim);
    size_t word = 13;
    for (const bool one : wide) body += fmt::format(", ({}*)a.word[{}]", one ? "P" : "Stored", word++);
    body += ", (P*)dynamic_shared());\n";
    return program({dtype, 1, kThreads, 1}, word, body);
}

// longest: of the rows whose tiles are treated, in `heads` heads.
void run(Pass pass, const AttentionShape& shape, int64_t longest, int64_t heads, const at::Tensor& like,
         const std::vector<at::Tensor>& tensors) {
    const int64_t tiles = (longest + kTile - 1) / kTile, items = shape.sequences * heads * tiles;
    if (items == 0) return;
    auto& kernels = *kernels_of(like.device());
    const auto dtype = like.scalar_type();
    const auto kernel = kernels.compiled(
        {Kernels::attention, static_cast<int64_t>(pass), shape.head_dim, static_cast<int64_t>(dtype)},
        kThreads, shared_bytes(pass, shape.head_dim, dtype),
        [&] { return source(pass, shape.head_dim, dtype); });
    const auto number = [](double x) { return std::bit_cast<uint64_t>(x); };
    std::vector<uint64_t> words = {static_cast<uint64_t>(items),
                                   reinterpret_cast<uint64_t>(shape.query_offsets),
                                   reinterpret_cast<uint64_t>(shape.key_offsets),
                                   static_cast<uint64_t>(shape.heads),
                                   static_cast<uint64_t>(shape.kv_heads),
                                   static_cast<uint64_t>(tiles),
                                   shape.causal,
                                   static_cast<uint64_t>(std::min(shape.window, kWidestWindow)),
                                   number(shape.scale),
                                   shape.dropout_key,
                                   static_cast<uint64_t>(shape.dropout_row),
                                   keep_threshold(shape.dropout),
                                   number(1 / (1 - shape.dropout))};
    for (const auto& tensor : tensors) words.push_back(address(tensor));
    kernels.launch(kernel, std::min(items, int64_t{kernels.processors()} * kernel.blocks), words);
}

}  // namespace

bool has_gpu_attention(const at::Tensor& q, const AttentionOptions& options) {
    constexpr int64_t kWidest = 256;  // registers hold the sums
    const auto* kernels = has_device_code(q.scalar_type()) ? kernels_of(q.device()) : nullptr;
    const int64_t head_dim = q.size(1) / options.heads;
    return kernels && head_dim <= kWidest &&
           shared_bytes(Pass::backward_kv, head_dim, q.scalar_type()) <= kernels->shared_bytes();
}

void gpu_attention_forward(const AttentionShape& shape, int64_t longest, const at::Tensor& q,
                           const at::Tensor& k, const at::Tensor& v, const at::Tensor& out,
                           const at::Tensor& lse) {
    run(Pass::forward, shape, longest, shape.heads, q, {q, k, v, out, lse});
}

void gpu_attention_backward(const AttentionShape& shape, int64_t longest, int64_t longest_key,
                            const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                            const at::Tensor& out, const at::Tensor& lse, const at::Tensor& grad_out,
                            const at::Tensor& grad_q, const at::Tensor& grad_k, const at::Tensor& grad_v) {
    const auto delta = at::empty_like(lse);
    run(Pass::backward_q, shape, longest, shape.heads, q, {q, k, v, out, grad_out, lse, delta, grad_q});
    run(Pass::backward_kv, shape, longest_key, shape.kv_heads, q,
        {q, k, v, grad_out, lse, delta, grad_k, grad_v});
}

}  // namespace ether::ops
