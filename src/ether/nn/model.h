// Model: what every architecture offers to methods, tasks and the trainer: two forward functions, its sites
// and tensors by name, and the points of its blocks. Owns its weights (often views of a mapped file).
#pragma once

#include <ATen/core/Tensor.h>

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "ether/nn/checkpointing.h"
#include "ether/nn/embeddings.h"
#include "ether/nn/parameters.h"
#include "ether/nn/pass.h"
#include "ether/nn/site.h"

namespace ether::nn {

enum class Head { sequence_classification, causal_lm };

// Key and value vectors put before a layer's own: (prefix, kv_heads * head_dim), for every sequence alike, or
// (B, prefix, kv_heads * head_dim).
struct ExtraKeyValues {
    at::Tensor keys, values;
};

// The named points of one transformer block where methods that are no linear site plug in. An empty function
// does nothing. attn_in and mlp_in see what the sublayer reads; attn_out and mlp_out its result, before the
// residual is added; extra_kv sees what attention reads; mlp replaces the sublayer and receives it as a
// function. mlp_end, like mlp_out, changes the sublayer's result, knowing what the block would make of it:
// norm(x + result) or x + result.
struct BlockPoints {
    using Map = std::function<at::Tensor(const at::Tensor& x, const Pass&)>;
    using Sublayer = std::function<at::Tensor(const at::Tensor& x)>;
    Map attn_in, attn_out, mlp_in, mlp_out;
    std::function<ExtraKeyValues(const at::Tensor& x, const Pass&)> extra_kv;
    int64_t positions_taken = 0;  // by extra_kv's vectors, before a text's first one
    std::function<at::Tensor(const at::Tensor& x, const Sublayer& mlp, const Pass&)> mlp;
    std::function<at::Tensor(const at::Tensor& result, const Sublayer& finish, const Pass&)> mlp_end;

    // Each token's position, behind those that are taken: (T) int64.
    at::Tensor positions_of(const data::Batch& batch) const;
    // Takes over what `other` does, up to a point where both do something: then false.
    bool join(const BlockPoints& other);
    bool empty() const {
        return !attn_in && !attn_out && !mlp_in && !mlp_out && !extra_kv && !mlp && !mlp_end;
    }

    // A value of a graph through a point's function, for which the graph runs up to it.
    static ops::Rows::Value at(const Map& point, ops::Rows& rows, ops::Rows::Value x, const Pass& pass) {
        return point ? rows.input(point(rows.run(x), pass)) : x;
    }
};

// Sizes every caller may need.
struct ModelShape {
    std::string architecture;  // config.json's model_type
    std::string prefix;        // of the base model in the Auto class: "bert.", "model."
    Head head = Head::causal_lm;
    int64_t hidden_size = 0, layers = 0, heads = 0, kv_heads = 0, head_dim = 0, intermediate_size = 0;
    int64_t vocab_size = 0, max_positions = 0, classes = 0;
    int64_t token_types = 0;  // 0: they are not read
    bool causal = true;
};

// 3 for "model.layers.3.mlp.up_proj.weight": the only number in a name is its block's, in all architectures.
std::optional<size_t> block_number(const std::string& name);
// "classifier" for "classifier.out_proj": a head of several layers is trained and saved as one module.
std::string top_module(const std::string& module);

class Model {
  public:
    Model() = default;
    Model(const Model&) = delete;  // slots and sites are known by their addresses
    Model& operator=(const Model&) = delete;
    virtual ~Model() = default;

    // Final hidden states (T, hidden_size).
    virtual at::Tensor hidden(const Pass& pass) const = 0;
    // sequence_classification: (B, classes); causal_lm: (T, vocab_size).
    virtual at::Tensor logits(const Pass& pass) const = 0;

    const ModelShape& shape() const { return shape_; }
    at::ScalarType dtype() const { return dtype_; }
    at::Device device() const { return device_; }  // where its tensors are, and batches must be
    std::deque<Site>& sites() { return sites_; }
    const std::deque<Site>& sites() const { return sites_; }
    std::vector<BlockPoints>& points() { return points_; }
    Embeddings& embeddings() { return embeddings_; }  // of words
    const Embeddings& embeddings() const { return embeddings_; }
    Site& output_site() { return *output_site_; }
    const Site& output_site() const { return *output_site_; }
    // Whether the output layer's weight is the table of embeddings.
    bool has_tied_output() const { return output_site_->linear.weight.is_same(embeddings_.table); }

    // Names of the checkpoint's tensors that were taken.
    const std::set<std::string>& taken() const { return taken_; }
    // All tensors by their names in the Auto class for this head; a slot may be assigned (trained copies,
    // merges).
    const std::map<std::string, std::vector<at::Tensor*>>& tensors() const { return slots_; }
    void replace(const std::string& name, const at::Tensor& value);
    // Gives an output layer that shares its weight with the embeddings a copy of its own, named after it.
    void untie_output();
    int64_t parameter_count() const;
    // Module whose tensors the checkpoint lacked, so they were drawn: a new classification head. Trained by
    // default.
    const std::vector<std::string>& new_modules() const { return new_modules_; }
    std::vector<std::string> module_tensors(const std::string& module) const;
    // Reads all weights; NaN or infinity is an error that names `folder` and the tensor.
    void check_finite(const std::string& folder) const;

    // How many blocks of the passes to come, from the first one, are checkpointed (checkpointing.h). Called
    // after forms are bound: those of blocks then hold leaves. Not where a point is set: nobody knows what
    // its function trains.
    void checkpoint_blocks(int64_t count);

    // An adapter's vectors may take so many positions: the most that one takes are not left for a text.
    void take_positions(int64_t count);

    // Removes what adapters bound: forms, sinks, points.
    void unbind();

  protected:
    // x through the block with that number, checkpointed or not.
    at::Tensor through(size_t layer, const at::Tensor& x, const Pass& pass, const Block& block) const;

    ModelShape shape_;
    at::ScalarType dtype_ = at::kFloat;
    at::Device device_ = at::kCPU;
    std::deque<Site> sites_;
    std::vector<BlockPoints> points_;
    std::map<std::string, std::vector<at::Tensor*>> slots_;
    std::set<std::string> taken_;
    std::vector<std::string> new_modules_;
    Embeddings embeddings_;
    Site* output_site_ = nullptr;
    int64_t taken_positions_ = 0;
    std::vector<BlockInputs> checkpoints_;  // of the blocks that are checkpointed

    friend class Weights;
};

}  // namespace ether::nn
