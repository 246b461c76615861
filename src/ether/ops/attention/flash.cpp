#include "ether/ops/attention/flash.h"

#include <ATen/Context.h>
#include <ATen/ops/_flash_attention_backward.h>
#include <ATen/ops/_flash_attention_forward.h>
#include <torch/csrc/autograd/custom_function.h>

#include <atomic>
#include <mutex>

namespace ether::ops {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

bool suits(const Tensor& q, const AttentionOptions& options) {
    const int64_t d = q.size(1) / options.heads;
    return q.is_cuda() && q.scalar_type() == at::kBFloat16 && options.dropout == 0 && d % 8 == 0 &&
           d <= 256 && options.longest_query > 0 && options.longest_key > 0;
}

// While it lives, libtorch sums the gradient of q in one order, and does not fill what it is about to write.
// Settings of the whole process, which other operations would heed as well.
class Deterministic {
  public:
    Deterministic() : alone_(mutex()) {
        context_.setDeterministicAlgorithms(true, /*warn_only=*/false);
        context_.setDeterministicFillUninitializedMemory(false);
    }
    ~Deterministic() {
        context_.setDeterministicAlgorithms(before_, warns_);
        context_.setDeterministicFillUninitializedMemory(fills_);
    }

  private:
    static std::mutex& mutex() {
        static std::mutex mutex;
        return mutex;
    }

    std::lock_guard<std::mutex> alone_;
    at::Context& context_ = at::globalContext();
    bool before_ = context_.deterministicAlgorithms(), warns_ = context_.deterministicAlgorithmsWarnOnly(),
         fills_ = context_.deterministicFillUninitializedMemory();
};

struct FlashFunction : torch::autograd::Function<FlashFunction> {
    static Tensor forward(AutogradContext* context, const Tensor& q, const Tensor& k, const Tensor& v,
                          const Tensor& query_offsets, const Tensor& key_offsets,
                          const AttentionOptions& options) {
        const int64_t earlier = options.window > 0 ? options.window - 1 : -1;  // -1: all
        const auto heads = [&](const Tensor& x, int64_t count) { return x.view({x.size(0), count, -1}); };
        const auto own_q = heads(q, options.heads), own_k = heads(k, options.kv_heads),
                   own_v = heads(v, options.kv_heads);
        const auto [out, lse, state, unused, mask] = at::_flash_attention_forward(
            own_q, own_k, own_v, query_offsets, key_offsets, options.longest_query, options.longest_key,
            /*dropout_p=*/0, options.causal, /*return_debug_mask=*/false, options.scale, earlier);
        context->save_for_backward(
            {own_q, own_k, own_v, out, lse, query_offsets, key_offsets, state, unused});
        auto& data = context->saved_data;
        data["longest_query"] = options.longest_query;
        data["longest_key"] = options.longest_key;
        data["causal"] = options.causal;
        data["scale"] = options.scale;
        data["earlier"] = earlier;
        return out.view(q.sizes());
    }

    static variable_list backward(AutogradContext* context, variable_list grads) {
        const auto saved = context->get_saved_variables();
        auto& data = context->saved_data;
        const Deterministic one_order;
        const auto [q, k, v] = at::_flash_attention_backward(
            grads[0].contiguous().view(saved[3].sizes()), saved[0], saved[1], saved[2], saved[3], saved[4],
            saved[5], saved[6], data["longest_query"].toInt(), data["longest_key"].toInt(), /*dropout_p=*/0,
            data["causal"].toBool(), saved[7], saved[8], data["scale"].toDouble(), data["earlier"].toInt());
        const auto flat = [](const Tensor& x) { return x.reshape({x.size(0), -1}); };
        return {flat(q), flat(k), flat(v), {}, {}, {}};
    }
};

}  // namespace

std::optional<Tensor> attention_flash(const Tensor& q, const Tensor& k, const Tensor& v,
                                      const Tensor& query_offsets, const Tensor& key_offsets,
                                      const AttentionOptions& options) {
    static std::atomic<bool> has_flash{true};
    if (!has_flash || !suits(q, options)) return {};
    try {
        return FlashFunction::apply(q, k, v, query_offsets, key_offsets, options);
    } catch (const c10::OutOfMemoryError&) {
        throw;
    } catch (const c10::Error&) {
        has_flash = false;
        return {};
    }
}

}  // namespace ether::ops
