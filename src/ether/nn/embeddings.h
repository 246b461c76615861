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
    std::string name;  // of the table among the model's tensors
    at::Tensor table;  // (V, d)
    // Bound by the adapter before each pass: rows, and forms of a linear layer whose weight is the table's
    // transpose and whose input is a token as a unit vector: additions that begin with a LowRank, and what
    // acts on its output. They leave a tied output layer as it is.
    const TokenRows* rows = nullptr;
    SiteForms forms = {};

    // The module that holds the table: its name without ".weight".
    std::string module() const { return name.substr(0, name.rfind('.')); }
    // (T) int64 -> (T, d)
    at::Tensor operator()(const at::Tensor& token_ids) const;
};

}  // namespace ether::nn
