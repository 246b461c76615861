// Embeddings: a table's rows by token, some of which an adapter may replace.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <string>

#include "ether/nn/forms.h"

namespace ether::nn {

// Rows that stand in the place of the table's.
class TokenRows {
  public:
    // ids: (k) int64 on the CPU, each once and all within the table (vocabulary, d). rows: (k, d), perhaps
    // trained, on the table's device.
    TokenRows(const at::Tensor& ids, at::Tensor rows, int64_t vocabulary);

    const at::Tensor& ids() const { return ids_; }

    // table[token_ids] with these rows, (T, d) in the table's dtype. Differentiable in the rows.
    at::Tensor embed(const at::Tensor& table, const at::Tensor& token_ids) const;
    // table with these rows.
    at::Tensor in(const at::Tensor& table) const;
    // What they change of a linear layer whose weight is the table (a tied output layer).
    SiteForms as_forms(const at::Tensor& table) const;

  private:
    at::Tensor ids_, rows_;
    at::Tensor sorted_, order_;  // ids in ascending order, and whose rows those are
    std::shared_ptr<const ops::SparsePattern> entries_;
};

struct Embeddings {
    std::string name;                 // of the table among the model's tensors
    at::Tensor table;                 // (V, d)
    const TokenRows* rows = nullptr;  // bound by the adapter before each pass

    // (T) int64 -> (T, d)
    at::Tensor operator()(const at::Tensor& token_ids) const;
};

}  // namespace ether::nn
