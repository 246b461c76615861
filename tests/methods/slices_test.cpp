// Methods that are more than forms, written thinly against the same interfaces and gradchecked on whole
// models: what the points of a block, the points of a step, shared parameters and banks are for.
#include <gtest/gtest.h>

#include "ether/methods/method.h"
#include "ether/methods/targets.h"
#include "ether/ops/unit/unit.h"
#include "fixture_models.h"
#include "gradcheck.h"

namespace ether::methods {
namespace {

using at::Tensor;
using test::FixtureModel;
using test::gradcheck;
using test::near;
using test::normal;

Tensor leaf(at::IntArrayRef shape, uint64_t seed, double size = 0.3) {
    return (normal(shape, seed) * size).requires_grad_(true);
}

class Slices : public testing::TestWithParam<FixtureModel> {
  protected:
    const FixtureModel& fixture = GetParam();
    const std::unique_ptr<nn::Model> model = fixture.load(at::kDouble);
    const data::Batch batch = fixture.batch();
    const nn::ModelShape& shape = model->shape();
    const bool is_bert = fixture.classifies();

    // A step as the trainer makes it: all passes with their forms, their losses, and the extra loss.
    Tensor step_loss(Adapter& adapter, const std::vector<nn::Site*>& sites) {
        Tensor loss;
        std::vector<Tensor> logits;
        for (int index = 0; index < adapter.forward_passes(); ++index) {
            const nn::Pass pass{.batch = batch, .training = false, .index = index};
            adapter.begin_pass(pass);
            for (auto* site : sites) site->forms = adapter.forms(*site, pass);
            logits.push_back(model->logits(pass));
            const auto part = fixture.loss(logits.back(), batch);
            loss = loss.defined() ? loss + part : part;
        }
        const auto extra = adapter.extra_loss(logits);
        return extra.defined() ? loss + extra : loss;
    }
    std::vector<nn::Site*> query_and_value() {
        return select({.modules = is_bert ? "query,value" : "q_proj,v_proj"}, *model).sites;
    }
};

// Prefix tuning (arXiv 2101.00190): learned keys and values before each layer's own.
class Prefix : public Adapter {
  public:
    Prefix(nn::Model& model, int64_t length) {
        const int64_t width = model.shape().kv_heads * model.shape().head_dim;
        for (size_t layer = 0; layer < model.points().size(); ++layer) {
            keys.push_back(leaf({length, width}, 2 * layer)),
                values.push_back(leaf({length, width}, 2 * layer + 1));
            model.points()[layer].extra_kv = [this, layer](const Tensor&, const nn::Pass&) {
                return nn::ExtraKeyValues{keys[layer], values[layer]};
            };
        }
    }
    std::vector<Tensor> keys, values;
};

TEST_P(Slices, Prefix) {
    const auto base = model->logits({.batch = batch});
    Prefix prefix(*model, 3);
    EXPECT_TRUE(
        gradcheck([&] { return step_loss(prefix, {}); },
                  {{"keys.0", prefix.keys[0]}, {"values.1", prefix.values[1]}, {"keys.1", prefix.keys[1]}}));
    const auto with = model->logits({.batch = batch});
    EXPECT_GT(test::distance(with, base), 1e-3);
    // One prefix for all sequences, or the same one for each.
    auto& point = model->points()[0].extra_kv;
    point = [&](const Tensor&, const nn::Pass&) {
        return nn::ExtraKeyValues{prefix.keys[0].expand({4, -1, -1}), prefix.values[0].expand({4, -1, -1})};
    };
    EXPECT_TRUE(near(model->logits({.batch = batch}), with, 1e-14));
    model->unbind();
    EXPECT_TRUE(at::equal(model->logits({.batch = batch}), base));
}

// DyT (arXiv 2403.11808) in outline: a learned soft mask scales the MLP's result; a step's second pass goes
// without it, and the two are drawn together.
class Dyt : public Adapter {
  public:
    explicit Dyt(nn::Model& model) {
        for (size_t layer = 0; layer < model.points().size(); ++layer) {
            gates.push_back(leaf({model.shape().hidden_size, 1}, layer));
            model.points()[layer].mlp = [this, layer](const Tensor& x, const nn::BlockPoints::Sublayer& mlp,
                                                      const nn::Pass& pass) {
                return pass.index == 0 ? at::sigmoid(x.mm(gates[layer]) / 5) * mlp(x) : mlp(x);
            };
        }
    }
    int forward_passes() const override { return 2; }
    Tensor extra_loss(const std::vector<Tensor>& logits) override {
        return at::kl_div(logits[0].log_softmax(-1), logits[1].detach().softmax(-1), at::Reduction::Mean);
    }
    std::vector<Tensor> gates;
};

TEST_P(Slices, DynamicTuning) {
    const auto base = model->logits({.batch = batch});
    Dyt dyt(*model);
    EXPECT_TRUE(gradcheck([&] { return step_loss(dyt, {}); },
                          {{"gates.0", dyt.gates[0]}, {"gates.1", dyt.gates[1]}}));
    EXPECT_TRUE(at::equal(model->logits({.batch = batch, .index = 1}), base));  // the complete pass
    EXPECT_GT(test::distance(model->logits({.batch = batch}), base), 1e-3);
}

// ID3 (arXiv 2408.14470) in outline: the streamed gradient of a frozen weight chooses its best entries, which
// an Overlay then trains. The full gradient is never kept.
class Id3 : public Adapter {
  public:
    explicit Id3(int64_t budget) : budget_(budget) {}
    bool wants_weight_grad(const nn::Site&) override { return true; }
    void weight_grad(const nn::Site& site, const Tensor& gradient) override {
        auto& entries = chosen_[site.index];
        if (entries.values.defined()) return;
        const auto indices = std::get<1>(gradient.abs().view({-1}).topk(budget_));
        entries.patterns = {std::make_shared<ops::SparsePattern>(ops::places_of(indices, site.linear.in()),
                                                                 site.linear.out(), site.linear.in())};
        entries.values = at::zeros({budget_}, gradient.options()).requires_grad_(true);
        scores[site.index] = gradient.view({-1}).index_select(0, indices);
    }
    nn::SiteForms forms(const nn::Site& site, const nn::Pass&) override {
        nn::SiteForms forms;
        if (const auto found = chosen_.find(site.index); found != chosen_.end())
            forms.delta.push_back({found->second});
        return forms;
    }
    const nn::Overlay& chosen(const nn::Site& site) const { return chosen_.at(site.index); }
    std::map<int64_t, Tensor> scores;

  private:
    int64_t budget_;
    std::map<int64_t, nn::Overlay> chosen_;
};

TEST_P(Slices, Unmasking) {
    Id3 id3(9);
    const auto sites = query_and_value();
    for (auto* site : sites) site->weight_grad = [&id3, site](const Tensor& g) { id3.weight_grad(*site, g); };
    step_loss(id3, sites).backward();
    EXPECT_EQ(id3.scores.size(), sites.size());
    test::NamedInputs values;
    for (auto* site : sites) {
        site->weight_grad = {};
        EXPECT_FALSE(site->linear.weight.grad().defined());
        values.emplace_back(site->name(), id3.chosen(*site).values);
    }
    EXPECT_TRUE(gradcheck([&] { return step_loss(id3, sites); }, values));
    for (const auto& [name, trained] : values) trained.mutable_grad() = Tensor();
    step_loss(id3, sites).backward();
    for (auto* site : sites) {  // at zero, the values' gradient is what was streamed
        const auto& trained = id3.chosen(*site).values;
        EXPECT_TRUE(near(trained.grad(), id3.scores.at(site->index), 1e-12)) << site->name();
        trained.data().copy_(normal({9}, 3));
    }
    step_loss(id3, sites);
    const auto y = model->logits({.batch = batch});
    for (auto* site : sites) {
        const auto weight = nn::merged(site->forms, site->linear.weight, site->linear.bias).first.detach();
        EXPECT_EQ((weight - site->linear.weight).ne(0).sum().item<int64_t>(), 9);
        site->linear.weight = weight, site->forms = {};
    }
    EXPECT_TRUE(near(model->logits({.batch = batch}), y, 1e-12));
}

// LoRTA (arXiv 2410.04060) in outline: one CP tensor for all layers and matrices, each site's LowRank made
// from it.
class Lorta : public Adapter {
  public:
    Lorta(const nn::ModelShape& shape, int64_t rank)
        : a(leaf({shape.hidden_size, rank}, 1)),
          b(leaf({rank, shape.head_dim}, 2)),
          heads(leaf({shape.heads, rank}, 3)),
          matrices(leaf({2, rank}, 4)),
          layers(leaf({shape.layers, rank}, 5)) {}
    nn::SiteForms forms(const nn::Site& site, const nn::Pass&) override {
        const bool is_value = site.name().find('v', site.name().rfind('.')) != std::string::npos;
        const int64_t count = site.linear.out() / b.size(1);
        const auto factors =
            heads.narrow(0, 0, count) * matrices[is_value] * layers[site.layer];  // (heads, r)
        const auto out = (factors.unsqueeze(1) * b.t().unsqueeze(0)).reshape({site.linear.out(), a.size(1)});
        nn::SiteForms forms;
        forms.delta.push_back({nn::LowRank{a.t(), out, 2.0}});
        return forms;
    }
    Tensor a, b, heads, matrices, layers;
};

TEST_P(Slices, SharedTensor) {
    Lorta lorta(shape, 3);
    const auto sites = query_and_value();
    EXPECT_TRUE(gradcheck([&] { return step_loss(lorta, sites); }, {{"A", lorta.a},
                                                                    {"B", lorta.b},
                                                                    {"C_h", lorta.heads},
                                                                    {"C_m", lorta.matrices},
                                                                    {"C_l", lorta.layers}}));
    // Against D = [A diag(C_h[h] C_m[m] C_l[l]) B]_h, heads side by side.
    const auto* value = sites.back();
    const auto x = normal({5, shape.hidden_size}, 9);
    std::vector<Tensor> d;
    for (int64_t h = 0; h < shape.kv_heads; ++h)
        d.push_back(
            lorta.a.mm((lorta.heads[h] * lorta.matrices[1] * lorta.layers[value->layer]).diag()).mm(lorta.b));
    const auto delta = nn::apply_chain(lorta.forms(*value, {.batch = batch}).delta.front(), x, {});
    EXPECT_TRUE(near(delta, 2 * x.mm(at::cat(d, 1)), 1e-13));
}

// A bank of ETHER adapters on every layer: each row of a batch uses its own.
class Bank : public Adapter {
  public:
    Bank(const std::vector<nn::Site*>& sites, int64_t entries) {
        for (const auto* site : sites)
            vectors[site->index] =
                leaf({entries, 4, site->linear.in() / 4}, static_cast<uint64_t>(site->index), 1);
    }
    nn::SiteForms forms(const nn::Site& site, const nn::Pass& pass) override {
        const auto u = ops::unit(vectors.at(site.index));
        nn::SiteForms forms;
        if (pass.adapter_rows.defined()) {
            forms.pre.emplace_back(nn::Rank1{u.unsqueeze(1), u.unsqueeze(1), {-2}});
        } else {
            const auto one = u[pass.index].unsqueeze(0);  // the entry that runs alone
            forms.pre.emplace_back(nn::Rank1{one, one, {-2}});
        }
        return forms;
    }
    std::map<int64_t, Tensor> vectors;
};

TEST_P(Slices, BankOfAdapters) {
    const auto sites = select({}, *model).sites;
    Bank bank(sites, 2);
    auto run = [&](const nn::Pass& pass) {
        for (auto* site : sites) site->forms = bank.forms(*site, pass);
        return model->logits(pass);
    };
    // Rows 0..3 use entries 1, 0, 0, 1.
    std::vector<Tensor> alone, token_rows;
    for (int64_t row = 0; row < 4; ++row) {
        const int entry = row == 0 || row == 3;
        const auto one = fixture.batch({row});
        alone.push_back(run({.batch = one, .index = entry}));
        token_rows.push_back(at::full({one.tokens()}, entry, at::kInt));
    }
    const nn::Pass mixed{.batch = batch, .adapter_rows = at::cat(token_rows)};
    EXPECT_TRUE(near(run(mixed), at::cat(alone), 1e-12));
    EXPECT_TRUE(
        gradcheck([&] { return fixture.loss(run(mixed), batch); },
                  {{"first", bank.vectors.begin()->second}, {"last", bank.vectors.rbegin()->second}}));
}

INSTANTIATE_TEST_SUITE_P(Fixtures, Slices, testing::Values(test::kBert, test::kLlamaTied),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace ether::methods
