#include "ether/ops/attention/attention.h"

#include <ATen/Functions.h>
#include <torch/csrc/autograd/custom_function.h>

#include "ether/ops/attention/composed.h"
#include "ether/ops/attention/flash.h"
#include "ether/ops/attention/gpu.h"
#include "ether/ops/attention/kernel.h"
#include "ether/ops/composed.h"
#include "ether/ops/dispatch.h"
#include "ether/ops/gemm/gemm.h"

namespace ether::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

AttentionShape shape_of(const at::Tensor& q, const at::Tensor& query_offsets, const at::Tensor& key_offsets,
                        const AttentionOptions& options) {
    return {options.heads,
            options.kv_heads,
            q.size(1) / options.heads,
            query_offsets.size(0) - 1,
            query_offsets.const_data_ptr<int32_t>(),
            key_offsets.const_data_ptr<int32_t>(),
            options.scale,
            options.causal,
            options.window,
            options.dropout,
            options.random.key(),
            options.dropout_row};
}

// What the operands are held in: their own dtype, but for bfloat16 where this machine multiplies float32
// faster, or a head's values make no pairs.
at::ScalarType held_dtype(const at::Tensor& q, const AttentionOptions& options, bool on_gpu) {
    const auto own = q.scalar_type();
    const bool in_pairs = q.size(1) / options.heads % 2 == 0 && product_dtype(own, q.device()) == own;
    return on_gpu || in_pairs ? own : accumulate_dtype(own);
}

// The greatest length of a sequence, where nobody has told it yet.
int64_t longest_of(const at::Tensor& offsets, int64_t known) {
    return known > 0 || offsets.size(0) < 2 ? known : offsets.diff().max().item<int64_t>();
}

struct AttentionFunction : torch::autograd::Function<AttentionFunction> {
    static at::Tensor forward(AutogradContext* context, const at::Tensor& q_input, const at::Tensor& k_input,
                              const at::Tensor& v_input, const at::Tensor& query_offsets,
                              const at::Tensor& key_offsets, const AttentionOptions& options, bool on_gpu) {
        const auto own = q_input.scalar_type(), wide = accumulate_dtype(own),
                   dtype = held_dtype(q_input, options, on_gpu);
        const auto q = q_input.to(dtype).contiguous(), k = k_input.to(dtype).contiguous(),
                   v = v_input.to(dtype).contiguous();
        auto out = at::empty_like(q);
        auto lse = at::empty({q.size(0), options.heads}, q.options().dtype(wide));
        const auto shape = shape_of(q, query_offsets, key_offsets, options);
        const int64_t longest = on_gpu ? longest_of(query_offsets, options.longest_query) : 0;
        if (on_gpu)
            gpu_attention_forward(shape, longest, q, k, v, out, lse);
        else
            dispatch(q.scalar_type(), "attention", [&](auto type) {
                using T = decltype(type);
                attention_forward<T>(shape, q.const_data_ptr<T>(), k.const_data_ptr<T>(),
                                     v.const_data_ptr<T>(), out.mutable_data_ptr<T>(),
                                     lse.mutable_data_ptr<accumulate_t<T>>());
            });
        context->save_for_backward({q_input, k_input, v_input, out, lse, query_offsets, key_offsets});
        auto& data = context->saved_data;
        data["heads"] = options.heads;
        data["kv_heads"] = options.kv_heads;
        data["scale"] = options.scale;
        data["causal"] = options.causal;
        data["window"] = options.window;
        data["dropout"] = options.dropout;
        data["key"] = static_cast<int64_t>(options.random.key());
        data["dropout_row"] = options.dropout_row;
        data["on_gpu"] = on_gpu;
        data["longest_query"] = longest;
        data["longest_key"] = options.longest_key;
        return out.to(q_input.scalar_type());
    }

    static variable_list backward(AutogradContext* context, variable_list grads) {
        const auto saved = context->get_saved_variables();
        const auto &out = saved[3], &lse = saved[4];
        const auto dtype = out.scalar_type();
        const auto q = saved[0].to(dtype).contiguous(), k = saved[1].to(dtype).contiguous(),
                   v = saved[2].to(dtype).contiguous(), grad_out = grads[0].to(dtype).contiguous();
        auto& data = context->saved_data;
        AttentionShape shape =
            shape_of(q, saved[5], saved[6],
                     {data["heads"].toInt(), data["kv_heads"].toInt(), data["scale"].toDouble(),
                      data["causal"].toBool(), data["window"].toInt(), data["dropout"].toDouble()});
        shape.dropout_key = static_cast<uint64_t>(data["key"].toInt());
        shape.dropout_row = data["dropout_row"].toInt();
        auto grad_q = at::empty_like(q), grad_k = at::empty_like(k), grad_v = at::empty_like(v);
        if (data["on_gpu"].toBool()) {
            const int64_t longest_key = longest_of(saved[6], data["longest_key"].toInt());
            gpu_attention_backward(shape, data["longest_query"].toInt(), longest_key, q, k, v, out, lse,
                                   grad_out, grad_q, grad_k, grad_v);
            return {grad_q, grad_k, grad_v, {}, {}, {}, {}};
        }
        dispatch(q.scalar_type(), "attention", [&](auto type) {
            using T = decltype(type);
            attention_backward<T>(shape, q.const_data_ptr<T>(), k.const_data_ptr<T>(), v.const_data_ptr<T>(),
                                  out.const_data_ptr<T>(), lse.const_data_ptr<accumulate_t<T>>(),
                                  grad_out.const_data_ptr<T>(), grad_q.mutable_data_ptr<T>(),
                                  grad_k.mutable_data_ptr<T>(), grad_v.mutable_data_ptr<T>());
        });
        const auto narrow = saved[0].scalar_type();
        return {grad_q.to(narrow), grad_k.to(narrow), grad_v.to(narrow), {}, {}, {}, {}};
    }
};

}  // namespace

at::Tensor attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const at::Tensor& query_offsets, const at::Tensor& key_offsets,
                     const AttentionOptions& options) {
    ETHER_ASSERT(q.dim() == 2 && q.size(1) % options.heads == 0 && options.heads % options.kv_heads == 0);
    ETHER_ASSERT(k.sizes() == v.sizes() && k.size(1) / options.kv_heads == q.size(1) / options.heads);
    ETHER_ASSERT(query_offsets.sizes() == key_offsets.sizes());
    if (auto result = attention_flash(q, k, v, query_offsets, key_offsets, options)) return *result;
    const bool on_gpu = has_gpu_attention(q, options);
    if (!on_gpu && runs_composed(q)) return attention_composed(q, k, v, query_offsets, key_offsets, options);
    return AttentionFunction::apply(q, k, v, query_offsets, key_offsets, options, on_gpu);
}

}  // namespace ether::ops
