// Every method on every model: it trains, its files give the same logits in a fresh model, and so does its
// merge; all its tensors are where the model's are.
#include <ATen/ExpandUtils.h>
#include <gtest/gtest.h>
#include <torch/library.h>

#include <fstream>
#include <map>
#include <set>

#include "ether/io/adapter_folder.h"
#include "ether/io/atomic.h"
#include "ether/methods/adapted_model.h"
#include "ether/methods/registry.h"
#include "ether/methods/targets.h"
#include "ether/train/optimizer.h"
#include "fixture_models.h"
#include "io/test_files.h"

namespace ether::train {
namespace {

using methods::AdaptedModel;
using test::FixtureModel;
using Walked = std::tuple<size_t, FixtureModel>;  // a method by its place in the registry, a model

// Defaults that are too large for such models.
const std::map<std::string, std::map<std::string, std::string>> kSmall = {
    {"oft", {{"block-size", "4"}}},
    {"naive", {{"blocks", "4"}}},
    {"delora", {{"lambda", "1"}}},
    {"vblora", {{"vector-length", "4"}, {"num-vectors", "16"}}},
    {"fourierft", {{"n-frequency", "64"}}},
    {"miss", {{"rank", "8"}}},
    {"waveft", {{"n-frequency", "64"}}},
    {"c3a", {{"block-size", "4"}}},
    {"road", {{"group-size", "8"}}},
    {"shira", {{"rank", "4"}}},
    {"prefix", {{"prefix-length", "3"}}},
    {"unipelt", {{"projection", "0"}, {"prefix-length", "3"}, {"bottleneck-size", "4"}}},
    {"trainable-tokens",
     {{"token-indices", "3,5,7,9,12,13,15,16,17,19,22,23,26,30,31,33,34,37,38,39,41,42,43,44,46,47"}}},
    {"pafi", {{"budget", "0.2"}}},
    {"id3", {{"budget", "0.1"}}},
};

// Methods that look at values, of which a device without memory has none.
const std::set<std::string> kLooking = {"hiwi", "id3", "pafi", "prefix", "shira"};
// And those that use what no such device can do at all: a Fourier transform, indices of a triangle, sums of
// segments.
const std::set<std::string> kLacking = {"fourierft", "oft", "unipelt"};

// What libtorch lacks of operations on such a device: results of the right size.
namespace meta {
at::Tensor index_select(const at::Tensor& self, int64_t dim, const at::Tensor& index) {
    EXPECT_TRUE(self.is_meta() && index.is_meta());
    auto sizes = self.sizes().vec();
    sizes[static_cast<size_t>(dim < 0 ? dim + self.dim() : dim)] = index.numel();
    return at::empty(sizes, self.options());
}
at::Tensor searchsorted(const at::Tensor& sorted, const at::Tensor& self, bool, bool,
                        std::optional<std::string_view>, const std::optional<at::Tensor>&) {
    EXPECT_TRUE(sorted.is_meta() && self.is_meta());
    return at::empty(self.sizes(), self.options().dtype(at::kLong));
}
at::Tensor where(const at::Tensor& condition, const at::Tensor& self, const at::Tensor& other) {
    EXPECT_TRUE(condition.is_meta() && (self.is_meta() || self.dim() == 0) &&
                (other.is_meta() || other.dim() == 0));
    const auto sizes = at::infer_size(condition.sizes(), at::infer_size(self.sizes(), other.sizes()));
    return at::empty(sizes, condition.options().dtype(at::result_type(self, other)));
}
at::Tensor relu(const at::Tensor& self) { return at::empty_like(self); }
at::Tensor embedding_dense_backward(const at::Tensor& grad, const at::Tensor& indices, int64_t rows, int64_t,
                                    bool) {
    EXPECT_TRUE(grad.is_meta() && indices.is_meta());
    return at::empty({rows, grad.size(-1)}, grad.options());
}
at::Tensor flip(const at::Tensor& self, at::IntArrayRef) { return at::empty_like(self); }
std::tuple<at::Tensor, at::Tensor, at::Tensor> native_layer_norm(const at::Tensor& x, at::IntArrayRef,
                                                                 const std::optional<at::Tensor>& weight,
                                                                 const std::optional<at::Tensor>& bias,
                                                                 double) {
    EXPECT_TRUE(weight->is_meta() && bias->is_meta());
    const auto each = at::empty({x.size(0), 1}, x.options());
    return {at::empty_like(x), each, each};
}
std::tuple<at::Tensor, at::Tensor, at::Tensor> native_layer_norm_backward(
    const at::Tensor& grad, const at::Tensor& x, at::IntArrayRef, const at::Tensor&, const at::Tensor&,
    const std::optional<at::Tensor>& weight, const std::optional<at::Tensor>& bias, std::array<bool, 3>) {
    EXPECT_TRUE(grad.is_meta());
    return {at::empty_like(x), at::empty_like(*weight), at::empty_like(*bias)};
}
}  // namespace meta
TORCH_LIBRARY_IMPL(aten, Meta, library) {
    library.impl("index_select", meta::index_select);
    library.impl("searchsorted.Tensor", meta::searchsorted);
    library.impl("where.self", meta::where);
    library.impl("flip", meta::flip);
    library.impl("relu", meta::relu);
    library.impl("embedding_dense_backward", meta::embedding_dense_backward);
    library.impl("native_layer_norm", meta::native_layer_norm);
    library.impl("native_layer_norm_backward", meta::native_layer_norm_backward);
}

class Walk : public testing::TestWithParam<Walked> {
  protected:
    const methods::Method& method = methods::all_methods()[std::get<0>(GetParam())];
    const FixtureModel& fixture = std::get<1>(GetParam());
    const data::Batch batch = fixture.batch();

    methods::AdapterConfig config() const {
        methods::AdapterConfig config{.method = method.name, .seed = 3};
        if (const auto small = kSmall.find(method.name); small != kSmall.end())
            config.options = small->second;
        if (config.method == "head")  // something to train, whatever the method is
            config.modules_to_save = {
                fixture.classifies() ? nn::top_module(fixture.load()->output_site().name()) : "norm"};
        return config;
    }
    // In its MLPs.
    bool has_biases() const {
        const auto model = fixture.load();
        return methods::select({.modules = "mlp-output"}, *model).sites.front()->linear.bias.defined();
    }
    bool lacks_what_is_trained() const {
        const std::string name = method.name;
        if (name == "hiwi") return !has_biases();
        const auto model = fixture.load();
        return name == "bitfit" &&
               std::none_of(model->tensors().begin(), model->tensors().end(),
                            [](const auto& slot) { return slot.first.ends_with(".bias"); });
    }
    // On a device without memory a tensor of another device, or a pointer to values, is an error.
    void check_that_it_stays_on_the_models_device() const {
        if (kLooking.contains(method.name) || kLacking.contains(method.name)) return;
        AdaptedModel adapted(fixture.load(at::kFloat, at::kMeta), config());
        const auto moved = batch.to(at::kMeta);
        for (const auto& parameter : adapted.parameters().all())
            EXPECT_TRUE(parameter.value.is_meta()) << parameter.name;
        const auto logits = adapted.logits({.batch = moved, .training = true});
        fixture.loss(logits, moved).backward();
        for (const auto& parameter : adapted.parameters().trained())
            if (const auto& gradient = parameter.value.grad(); gradient.defined()) {
                EXPECT_TRUE(gradient.is_meta() && gradient.sizes() == parameter.value.sizes())
                    << parameter.name;
            }
    }
    static void train(AdaptedModel& adapted, const FixtureModel& fixture, const data::Batch& batch,
                      double rate, int steps) {
        std::vector<OptimizedParameter> parameters;
        for (const auto& parameter : adapted.parameters().trained())
            parameters.push_back({parameter.name, parameter.value, rate, 0});
        AdamW optimizer(parameters);
        double before = 0;
        for (int i = 0; i <= steps; ++i) {
            const auto loss = fixture.loss(adapted.logits({.batch = batch}), batch);
            if (i == 0) before = loss.item<double>();
            if (i == steps) {
                EXPECT_LT(loss.item<double>(), before - 1e-4);
                return;
            }
            loss.backward();
            for (const auto& parameter : parameters)
                if (const auto& gradient = parameter.value.grad(); gradient.defined()) {
                    EXPECT_TRUE(gradient.isfinite().all().item<bool>()) << parameter.name;
                }
            adapted.after_backward({.step = i, .total = steps});
            optimizer.step(1);
            adapted.after_update({.step = i + 1, .total = steps});
            adapted.parameters().clear_grads();
        }
    }
};

TEST_P(Walk, TrainsSavesLoadsMerges) {
    if (std::string(method.name) == "unipelt" && fixture.head == nn::Head::causal_lm) {
        EXPECT_FAILS(usage, "a language model would be told", AdaptedModel(fixture.load(), config()));
        return;
    }
    if (lacks_what_is_trained()) {
        EXPECT_FAILS(usage, "bias", AdaptedModel(fixture.load(), config()));
        return;
    }
    check_that_it_stays_on_the_models_device();
    AdaptedModel adapted(fixture.load(), config());
    EXPECT_GT(adapted.parameters().count(), 0);
    train(adapted, fixture, batch, 1e-2, 4);
    const auto trained = adapted.logits({.batch = batch}).detach();

    const test::TempFolder folder;
    io::write_adapter(folder / "adapter", adapted.files(fixture.name));
    AdaptedModel loaded(fixture.load(), io::read_adapter(folder / "adapter"));
    // Files of some hold less than what was trained: what is left of it, computed in another order.
    const bool folds = loaded.parameters().count() < adapted.parameters().count();
    EXPECT_EQ(folds, std::string(method.name) == "adalora" || std::string(method.name) == "hiwi");
    const bool inserts = std::string(method.name) == "bottleneck" || std::string(method.name) == "prefix" ||
                         std::string(method.name) == "unipelt";
    EXPECT_TRUE(test::near(loaded.logits({.batch = batch}), trained, folds ? 1e-5 : 0));

    // Trained on from its files, which then hold what became of it.
    AdaptedModel further(fixture.load(), io::read_adapter(folder / "adapter"), std::vector<std::string>());
    train(further, fixture, batch, 2e-3, 4);
    AdaptedModel again(fixture.load(), further.files(fixture.name));
    EXPECT_TRUE(
        test::near(again.logits({.batch = batch}), further.logits({.batch = batch}), folds ? 1e-5 : 0));

    if (inserts) {
        EXPECT_FAILS(adapter, "inserts modules", loaded.merged_tensors(at::kFloat));
        return;
    }
    auto tensors = loaded.merged_tensors(at::kFloat);
    std::ifstream stream(fixture.path() / "config.json");
    auto model_config = nlohmann::json::parse(stream);
    const auto& base = loaded.model();
    if (std::string(method.name) == "red" && !has_biases() && base.shape().architecture != "llama") {
        EXPECT_FAILS(adapter, "cannot be merged", models::declare_new_biases(base, model_config, tensors));
        return;
    }
    models::declare_new_biases(base, model_config, tensors);
    std::filesystem::create_directory(folder / "merged");
    io::write_file_atomic(folder / "merged" / "config.json", model_config.dump());
    io::write_safetensors(folder / "merged" / "model.safetensors", tensors);
    const auto merged = models::load_model(io::Checkpoint::open(folder / "merged"),
                                           {.head = fixture.head, .dtype = at::kFloat});
    EXPECT_TRUE(test::near(merged->logits({.batch = batch}), trained, 1e-5));
}

// Along one direction of all trained values at once, in float64: central differences of the loss against its
// gradient.
TEST_P(Walk, GradientsAgreeWithDifferences) {
    if (lacks_what_is_trained() ||
        (std::string(method.name) == "unipelt" && fixture.head == nn::Head::causal_lm))
        return;
    AdaptedModel adapted(fixture.load(at::kDouble), config());
    std::vector<at::Tensor> values, directions;
    uint64_t drawn = 0;
    for (const auto& parameter : adapted.parameters().all()) {
        at::Tensor value = parameter.value;
        if (value.is_floating_point()) value.set_data(value.detach().to(at::kDouble));
        if (!parameter.trained) continue;
        const auto draw = [&](double size) {
            return methods::normal(value.sizes(), size, Random(7).stream(++drawn)).to(at::kDouble);
        };
        value.detach().add_(draw(0.02));
        values.push_back(value);
        directions.push_back(draw(1));
    }
    auto loss = [&] { return fixture.loss(adapted.logits({.batch = batch}), batch); };
    loss().backward();
    const at::NoGradGuard no_grad;
    double along = 0;
    for (size_t i = 0; i < values.size(); ++i)
        if (const auto& gradient = values[i].grad(); gradient.defined())
            along += (gradient * directions[i]).sum().item<double>();
    auto moved = [&](double step) {
        for (size_t i = 0; i < values.size(); ++i) values[i].add_(directions[i], step);
        return loss().item<double>();
    };
    constexpr double kStep = 1e-7;
    const double up = moved(kStep), down = moved(-2 * kStep);
    // DoRA's norms count as constants (arXiv 2402.09353, section 4.3).
    if (std::string(method.name) == "magnitude") return;
    EXPECT_NEAR((up - down) / (2 * kStep), along, 1e-5 * std::max(1e-2, std::abs(along)));
}

std::vector<size_t> method_indices() {
    std::vector<size_t> indices(methods::all_methods().size());
    for (size_t i = 0; i < indices.size(); ++i) indices[i] = i;
    return indices;
}

INSTANTIATE_TEST_SUITE_P(All, Walk,
                         testing::Combine(testing::ValuesIn(method_indices()),
                                          testing::ValuesIn(test::kFixtureModels)),
                         [](const auto& info) {
                             std::string name = methods::all_methods()[std::get<0>(info.param)].name;
                             if (const auto plus = name.find('+'); plus != std::string::npos)
                                 name.replace(plus, 1, "_plus");
                             std::replace(name.begin(), name.end(), '-', '_');
                             return name + "_" + std::get<1>(info.param).name;
                         });

}  // namespace
}  // namespace ether::train
