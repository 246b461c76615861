#include "ether/methods/eva.h"

#include <ATen/Functions.h>

#include <algorithm>
#include <cmath>
#include <deque>
#include <map>
#include <utility>

#include "ether/core/error.h"
#include "ether/methods/largest_singular.h"

namespace ether::methods {
namespace {

using at::Tensor;

constexpr double kSame = 0.99;  // cosine from which a direction has stayed; PEFT's tau
constexpr int kMostBatches = 1000;
constexpr int64_t kRounds = 4;

// The principal directions of rows that come batch by batch (incremental PCA, Ross et al. 2008): what was
// found so far stands for the rows before, beside the new ones and the shift of the mean.
class Directions {
  public:
    Directions(int64_t count, const Random& random) : count_(count), random_(random) {}

    void add(const Tensor& rows) {
        pending_ = pending_.defined() ? at::cat({pending_, rows}) : rows;
        if (pending_.size(0) < count_) return;
        const auto batch = std::exchange(pending_, {}).to(at::kFloat);
        const auto count = static_cast<double>(batch.size(0)), before = seen_;
        const auto mean = batch.mean(0);
        auto matrix = batch - mean;
        squares_ += matrix.square().sum(c10::nullopt, false, at::kDouble).item<double>();
        if (before > 0) {
            const auto shift = std::sqrt(before * count / (before + count)) * (mean_ - mean);
            squares_ += shift.square().sum().item<double>();
            matrix = at::cat({singular_.unsqueeze(1) * directions_, matrix, shift.unsqueeze(0)});
        }
        seen_ += count;
        mean_ = before > 0 ? mean_ + (mean - mean_) * (count / seen_) : mean;
        const auto found = largest_singular(matrix, count_, kRounds, random_.stream(batches_++));
        const int64_t kept = std::min(count_, found.s.size(0));
        // The sign that makes the largest coordinate positive.
        auto directions = found.vh.narrow(0, 0, kept);
        const auto largest = directions.abs().argmax(1, /*keepdim=*/true);
        directions = directions * directions.gather(1, largest).sign();
        const bool as_many = directions_.defined() && directions_.sizes() == directions.sizes();
        stays_ =
            as_many ? at::cosine_similarity(directions, directions_) >= kSame : at::zeros({kept}, at::kBool);
        directions_ = directions;
        singular_ = found.s.narrow(0, 0, kept);
    }

    bool known() const { return directions_.defined(); }
    bool stay(int64_t count) const {
        return known() && stays_.narrow(0, 0, std::min(count, stays_.size(0))).all().item<bool>();
    }
    int64_t count() const { return count_; }
    // Shares of the variance, falling.
    std::vector<double> shares() const {
        const auto shares =
            (singular_.square().to(at::kDouble) / std::max(squares_, 1e-300)).cpu().contiguous();
        return {shares.const_data_ptr<double>(), shares.const_data_ptr<double>() + shares.numel()};
    }
    Tensor first(int64_t count, bool whiten) const {
        auto rows = directions_.narrow(0, 0, count);
        if (whiten) rows = rows / singular_.narrow(0, 0, count).sqrt().unsqueeze(1);
        return rows.contiguous();
    }

  private:
    int64_t count_;
    Random random_;
    uint64_t batches_ = 0;
    double seen_ = 0, squares_ = 0;  // rows; squared distances from their mean
    Tensor pending_, mean_, directions_, singular_, stays_;
};

// Layers that read the same, such as q, k and v.
struct Readers {
    std::vector<const nn::Site*> sites;
    Directions directions;
    bool settled = false;  // all directions that its sites are given stay
};

// Watches what sites read, as long as it lives.
class Watch {
  public:
    template <typename See>
    Watch(const MethodContext& context, See see) : context_(context) {
        for (nn::Site* site : context.sites)
            site->watch = [site, see](const Tensor& x) { see(*site, x.detach()); };
    }
    ~Watch() {
        for (nn::Site* site : context_.sites) site->watch = {};
    }
    Watch(const Watch&) = delete;
    Watch& operator=(const Watch&) = delete;

  private:
    const MethodContext& context_;
};

// Layers by what they read, told by where it lies while it is held.
std::vector<std::vector<const nn::Site*>> readers_of(const MethodContext& context) {
    std::vector<std::vector<const nn::Site*>> groups;
    Tensor last;
    const Watch watch(context, [&](const nn::Site& site, const Tensor& x) {
        const bool same =
            last.defined() && last.const_data_ptr() == x.const_data_ptr() && last.sizes() == x.sizes();
        if (!same) groups.emplace_back();
        groups.back().push_back(&site);
        last = x;
    });
    context.run_batch();
    return groups;
}

// As many directions as the ranks add up to, those with the largest shares of their layers' variance; of
// equal ones, the earlier layer's first.
BySite<int64_t> distributed(const MethodContext& context, const std::deque<Readers>& readers, int64_t total) {
    struct Share {
        double share;
        const nn::Site* site;
    };
    std::vector<Share> shares;
    for (const auto& group : readers)
        for (const auto* site : group.sites)
            for (const double share : group.directions.shares()) shares.push_back({share, site});
    std::stable_sort(shares.begin(), shares.end(),
                     [](const Share& a, const Share& b) { return a.share > b.share; });
    shares.resize(std::min(shares.size(), static_cast<size_t>(total)));
    BySite<int64_t> ranks(context.model);
    for (const auto& share : shares) ++ranks[*share.site];
    return ranks;
}

}  // namespace

BySite<Tensor> eva_starts(const MethodContext& context, const BySite<int64_t>& ranks,
                          const EvaOptions& options) {
    if (!context.run_batch)
        fail(ErrorKind::usage,
             "--init-lora-weights eva: looks at what layers read of the training examples, and here are "
             "none; "
             "use it with ether train");
    const at::NoGradGuard no_grad;
    const auto random = context.random.stream("eva");
    std::deque<Readers> readers;
    std::map<const nn::Site*, Readers*> first_of;
    int64_t total = 0;
    for (auto& sites : readers_of(context)) {
        int64_t count = 1;
        for (const auto* site : sites) {
            total += ranks[*site];
            count = std::max(
                count, static_cast<int64_t>(std::llround(options.rho * static_cast<double>(ranks[*site]))));
        }
        count = std::min(count, sites.front()->linear.in());
        auto& group =
            readers.emplace_back(Readers{std::move(sites), Directions(count, random.stream(readers.size()))});
        first_of[group.sites.front()] = &group;
    }

    BySite<int64_t> chosen(context.model);
    bool all_settled = false;
    for (int batch = 0; batch < kMostBatches && !all_settled; ++batch) {
        const Watch watch(context, [&](const nn::Site& site, const Tensor& x) {
            const auto found = first_of.find(&site);
            if (found != first_of.end() && !found->second->settled) found->second->directions.add(x);
        });
        context.run_batch();
        if (!std::all_of(readers.begin(), readers.end(),
                         [](const Readers& group) { return group.directions.known(); }))
            continue;
        chosen = distributed(context, readers, total);
        all_settled = true;
        for (auto& group : readers) {
            group.settled = std::all_of(group.sites.begin(), group.sites.end(), [&](const nn::Site* site) {
                return group.directions.stay(chosen[*site]);
            });
            all_settled &= group.settled;
        }
    }

    for (const auto& group : readers)
        if (!group.directions.known())
            fail(ErrorKind::usage,
                 "--init-lora-weights eva: {} has read fewer rows in {} batches than the {} directions it "
                 "needs; raise --batch, or lower --rank or --eva-rho",
                 group.sites.front()->name(), kMostBatches, group.directions.count());

    BySite<Tensor> starts(context.model);
    for (const auto& group : readers)
        for (const auto* site : group.sites)
            if (const int64_t rank = chosen[*site])
                starts[*site] = group.directions.first(rank, options.whiten);
    return starts;
}

}  // namespace ether::methods
