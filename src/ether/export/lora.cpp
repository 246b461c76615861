#include "ether/export/lora.h"

#include <ATen/Functions.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>

#include "ether/core/error.h"
#include "ether/export/checked_adapter.h"
#include "ether/export/low_rank.h"
#include "ether/io/atomic.h"
#include "ether/methods/registry.h"

namespace ether::exporting {
namespace {

namespace fs = std::filesystem;

// Of a change in float32, as a share of it.
constexpr double kRounding = 1e-5;

// vLLM's --max-lora-rank: its choices, and what it is where it is not given.
constexpr int64_t kServedRanks[] = {1, 8, 16, 32, 64, 128, 256, 320, 512};
constexpr int64_t kServedByDefault = 16;

// Methods and parts of them that are no change of linear layers' weights.
void refuse_other_changes(methods::AdaptedModel& adapted) {
    if (adapted.inserts_modules())
        fail(ErrorKind::adapter,
             "an adapter of {} inserts modules, which no LoRA holds and no merged model has a place for; use "
             "the "
             "adapter with --adapter",
             adapted.method_name());
    adapted.bind(nn::Pass{data::Batch{}});
    if (adapted.model().embeddings().rows)
        fail(ErrorKind::adapter,
             "the adapter trained embeddings of tokens as well, which are no part of a LoRA; ether merge "
             "writes a "
             "whole model");
    if (const auto* method = adapted.method_without_sites())
        fail(ErrorKind::adapter,
             "method {} ({}) is no change of chosen linear layers, which is all that a LoRA holds; ether "
             "merge "
             "writes a whole model",
             method->name, method->summary);
    if (const auto name = tensor_trained_in_place(adapted))
        fail(ErrorKind::adapter,
             "the adapter trained the base model's tensor \"{}\" as well, which no LoRA holds; ether merge "
             "writes a whole model",
             *name);
}

nn::SiteForms in_float64(nn::SiteForms forms) {
    for (at::Tensor* tensor : nn::tensors_of(forms)) *tensor = tensor->detach().to(at::kDouble);
    return forms;
}

std::optional<LowRank> low_rank_change(const nn::SiteForms& forms, const at::Tensor& weight) {
    try {
        const auto [a, b] = nn::lora_factors(forms, weight);
        return LowRank{a, b};
    } catch (const Error&) {  // it says that these forms are not low-rank
        return {};
    }
}

// A layer whose weight is changed: a site, or the table of embeddings, transposed.
struct Changed {
    std::string name, a, b;  // of the module, and of its factors in a LoRA
    const nn::SiteForms& forms;
    const at::Tensor weight, bias;
};

std::vector<Changed> changed_layers(const methods::AdaptedModel& adapted) {
    std::vector<Changed> layers;
    for (const nn::Site* site : adapted.sites())
        layers.push_back({site->name(), "lora_A.weight", "lora_B.weight", site->forms, site->linear.weight,
                          site->linear.bias});
    const auto& table = adapted.model().embeddings();
    if (!table.forms.empty())
        layers.push_back(
            {table.module(), "lora_embedding_A", "lora_embedding_B", table.forms, table.table.t(), {}});
    return layers;
}

// A layer's change of its weight, in exact factors: of the rank that their sizes tell.
LowRank factors_of(const Changed& layer, const std::string& method, bool svd) {
    const auto forms = in_float64(layer.forms);
    const auto weight = layer.weight.detach().to(at::kDouble);
    if (auto change = low_rank_change(forms, weight)) return *change;
    const auto bias = layer.bias.defined() ? layer.bias.detach().to(at::kDouble) : layer.bias;
    const auto [merged, shifted] = nn::merged(forms, weight, bias);
    if (shifted.defined() && !(bias.defined() && at::equal(shifted, bias)))
        fail(ErrorKind::adapter,
             "{}: an adapter of {} changes this layer's bias, which no LoRA holds; ether merge writes a "
             "whole model",
             layer.name, method);
    if (!svd)
        fail(ErrorKind::adapter,
             "{}: method {} with this adapter's options is no low-rank change of this layer, so no LoRA is "
             "exactly "
             "this adapter; --svd --max-rank R writes the nearest of rank R and tells its error, ether merge "
             "keeps all",
             layer.name, method);
    return factored(merged - weight);
}

double relative(double lost_square, double square) {
    return square > 0 ? std::sqrt(lost_square / square) : 0;
}

// A layer's change of its weight. Where sizes tell no small rank, it may have one all the same.
LowRank change_of(const Changed& layer, const std::string& method, bool svd) {
    const auto change = factors_of(layer, method, svd);
    return change.rank() < std::min(layer.weight.size(0), layer.weight.size(1)) ? change : compact(change);
}

// All changes at no more than the rank asked for.
std::vector<LowRank> changes_of(methods::AdaptedModel& adapted, const LoraExport& options,
                                LoraReport& report) {
    double square = 0, lost_square = 0;
    std::vector<LowRank> changes;
    for (const auto& layer : changed_layers(adapted)) {
        auto change = change_of(layer, adapted.method_name(), options.svd);
        const int64_t exact = std::min({change.rank(), layer.weight.size(0), layer.weight.size(1)});
        report.exact_rank = std::max(report.exact_rank, exact);
        const int64_t rank = options.max_rank ? std::min(options.max_rank, exact) : exact;
        if (rank < change.rank() || (options.max_rank && rank > 0)) {
            const auto nearest = truncated(change, rank);
            if (rank < change.rank()) change = nearest.factors;
            square += nearest.square;
            lost_square += nearest.lost_square;
            const double error = relative(nearest.lost_square, nearest.square);
            if (error > report.largest_error) {
                report.largest_error = error;
                report.largest_error_layer = layer.name;
            }
        }
        report.rank = std::max(report.rank, rank);
        changes.push_back({change.a.to(at::kFloat), change.b.to(at::kFloat)});
        if (!changes.back().a.isfinite().all().item<bool>() ||
            !changes.back().b.isfinite().all().item<bool>())
            fail(ErrorKind::numeric, "{}: the change of this layer is not finite, so no LoRA holds it",
                 layer.name);
    }
    report.error = relative(lost_square, square);
    report.rank = std::max<int64_t>(report.rank, 1);
    return changes;
}

// The LoRA that was read again changes each layer as was meant, whatever a truncation lost of the adapter.
void check_changes(methods::AdaptedModel& lora, const std::vector<LowRank>& changes) {
    lora.bind(nn::Pass{data::Batch{}});
    const auto layers = changed_layers(lora);
    ETHER_ASSERT(layers.size() == changes.size());
    for (size_t i = 0; i < changes.size(); ++i) {
        const auto& layer = layers[i];
        const auto [a, b] = nn::lora_factors(in_float64(layer.forms), layer.weight.detach().to(at::kDouble));
        const auto wanted = changes[i].b.to(at::kDouble).mm(changes[i].a.to(at::kDouble));
        const double lost = (b.mm(a) - wanted).norm().item<double>(), size = wanted.norm().item<double>();
        if (!(lost <= kRounding * size))
            fail(ErrorKind::numeric,
                 "{}: the LoRA's change of this layer, read again, is off by {:.3g} of {:.3g}", layer.name,
                 lost, size);
    }
}

std::vector<std::string> server_warnings(int64_t rank, const io::AdapterFiles& files,
                                         const nn::ModelShape& shape) {
    std::vector<std::string> warnings;
    const auto* choice = std::lower_bound(std::begin(kServedRanks), std::end(kServedRanks), rank);
    if (choice == std::end(kServedRanks))
        warnings.push_back(fmt::format(
            "vLLM takes no LoRA of a rank above {}, this one has {}; --max-rank {} writes the "
            "nearest that it takes, ether merge a whole model",
            kServedRanks[std::size(kServedRanks) - 1], rank, kServedRanks[std::size(kServedRanks) - 1]));
    else if (rank > kServedByDefault)
        warnings.push_back(
            fmt::format("vLLM's default is --max-lora-rank {}; serve this LoRA of rank {} with "
                        "--max-lora-rank {}",
                        kServedByDefault, rank, *choice));
    const auto& whole = files.config["modules_to_save"];
    if (shape.head == nn::Head::causal_lm && !whole.empty())
        warnings.push_back(
            fmt::format("{} was trained whole and lies beside the LoRA, where PEFT finds it but neither vLLM "
                        "nor llama.cpp; for these, ether merge writes a whole model",
                        fmt::join(whole.get<std::vector<std::string>>(), ", ")));
    return warnings;
}

io::AdapterFiles lora_files(eval::LoadedAdapter& loaded, const std::vector<LowRank>& changes, int64_t rank,
                            const std::string& base) {
    const auto& adapted = *loaded.model;
    io::NamedTensors tensors;
    const auto layers = changed_layers(adapted);
    for (size_t i = 0; i < changes.size(); ++i) {
        const auto [a, b] = padded(changes[i], rank);
        tensors.emplace_back(layers[i].name + "." + layers[i].a, a);
        tensors.emplace_back(layers[i].name + "." + layers[i].b, b);
    }
    const auto& lora = methods::method_named("lora");
    const auto options = lora.options();
    const auto fields = options->fields();
    for (const char* name : {"rank", "alpha"}) find_field(fields, name)->set(std::to_string(rank));
    auto files = adapted.files_as(lora, *options, tensors, base);
    files.ether = description_like(loaded);
    return files;
}

}  // namespace

LoraReport export_lora(eval::LoadedAdapter& loaded, const fs::path& out, const LoraExport& options) {
    const at::NoGradGuard no_grad;
    if (options.svd && !options.max_rank)
        fail(ErrorKind::usage, "--svd: needs --max-rank, the rank of the LoRA that comes nearest");
    auto& adapted = *loaded.model;
    refuse_other_changes(adapted);
    io::AtomicFolder folder(out);
    LoraReport report;
    const auto changes = changes_of(adapted, options, report);
    report.layers = static_cast<int64_t>(changes.size());
    const auto files = lora_files(loaded, changes, report.rank, options.base);
    report.warnings = server_warnings(report.rank, files, adapted.model().shape());
    auto written = write_checked(loaded, files, folder.path(), "LoRA", report.exact());
    static_cast<Comparison&>(report) = written.comparison;
    report.bytes = written.bytes;
    check_changes(*written.adapter.model, changes);
    folder.commit();
    return report;
}

}  // namespace ether::exporting
