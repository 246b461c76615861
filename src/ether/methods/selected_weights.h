// SelectedWeights: single entries of the base's weights, trained in their place: what selective methods
// share. Memory, optimizer state and file are of the budget's size, not the model's.
#pragma once

#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "ether/methods/method.h"

namespace ether::methods {

struct ScoredEntry {
    double score;
    int64_t place;
    double gradient;
};

// The best of many scored entries, one matrix after the other: higher scores first, then lower places.
class BestEntries {
  public:
    explicit BestEntries(int64_t count = 0) : count_(count) {}
    // scores: of places first, first + 1, ... What scores -infinity or NaN is never chosen. gradients: kept
    // beside them, if given.
    void add(const at::Tensor& scores, int64_t first, const at::Tensor& gradients = {});
    // At most `count` of them, the best one first.
    std::vector<ScoredEntry> best(int64_t count) const;

  private:
    int64_t count_;
    std::vector<ScoredEntry> entries_;
    double threshold_ = std::numeric_limits<double>::lowest();  // that of the worst, once there are enough
};

class SelectedWeights {
  public:
    // Registers `<name>_indices` (budget) int64 and `<name>_values` (budget): entry k of the targets'
    // weights, row-major and one after the other, is values[k]; an index of -1 is not in use yet. budget: a
    // number of entries, or below 1 a share of the targets' weights.
    SelectedWeights(const std::string& name, double budget, const MethodContext& context);

    int64_t budget() const { return values.numel(); }
    int64_t first_place(const nn::Site& site) const { return first_[site]; }
    // How many entries are in use: always the first ones.
    int64_t used();
    // Trains more entries from now on, from the base's values.
    void choose(const std::vector<ScoredEntry>& entries);
    // Row-major places of a site's entries in its weight, (k) int64.
    at::Tensor places_at(const nn::Site& site);
    // What a site's entries add to it.
    nn::SiteForms forms(const nn::Site& site, const nn::Pass& pass);

    // A config holds the budget as a number of entries.
    void to_config(nlohmann::json& config) const;

    at::Tensor indices, values;

  private:
    // What follows from the indices, which a file or a checkpoint may have changed.
    struct Chosen {
        at::Tensor where;  // (k) int64: which values
        std::shared_ptr<const ops::SparsePattern> pattern;
        at::Tensor base;  // (k): the weight's own entries
    };
    void refresh();

    const std::vector<nn::Site*> sites_;
    BySite<int64_t> first_;
    BySite<Chosen> chosen_;
    int64_t entries_ = 0, used_ = 0;
    std::pair<const void*, int64_t> seen_ = {};  // the indices that chosen_ is of: where, and their version
};

Field budget_field(double* budget);

}  // namespace ether::methods
