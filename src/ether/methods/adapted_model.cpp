#include "ether/methods/adapted_model.h"

#include <ATen/Functions.h>

#include <algorithm>
#include <cctype>
#include <nlohmann/json.hpp>

#include "ether/core/error.h"
#include "ether/core/utf8.h"
#include "ether/methods/adapter_config.h"
#include "ether/methods/registry.h"
#include "ether/nn/compose.h"

namespace ether::methods {
namespace {

// What make() returns. Methods call their options as they are typed; what a file chose has that file's keys.
template <typename Make>
auto in_words_of_file(MethodOptions& options, Make&& make) {
    try {
        return make();
    } catch (const Error& error) {
        std::string message = error.what();
        if (message.starts_with("--")) message = fmt::format("{}: {}", io::kAdapterConfigFile, message);
        auto fields = options.fields();
        fields.push_back({.name = "targets", .value = {}, .help = "", .key = "target_modules"});
        auto goes_on = [&](size_t at) {
            return at < message.size() &&
                   (std::isalnum(static_cast<unsigned char>(message[at])) || message[at] == '-');
        };
        for (const auto& field : fields) {
            const auto typed = "--" + field.name;
            for (auto at = message.find(typed); at != std::string::npos; at = message.find(typed, at + 1))
                if (!goes_on(at + typed.size())) message.replace(at, typed.size(), field.config_key());
        }
        throw Error(error.kind() == ErrorKind::usage ? ErrorKind::adapter : error.kind(), message);
    }
}

}  // namespace

std::string AdaptedModel::scope_of(size_t k, size_t parts) {
    return parts > 1 ? fmt::format("parts.{}.", k) : "";
}

AdaptedModel::Part AdaptedModel::part_of(const PartConfig& config) {
    const Method& method = method_named(config.method);
    Part part{&method, method.options(), config.targets, config.lr};
    const auto fields = part.options->fields();
    for (const auto& [name, value] : config.options) {
        const auto* field = find_field(fields, name);
        std::vector<std::string> known;
        for (const auto& other : fields) known.push_back("--" + other.name);
        if (!field)
            fail(ErrorKind::usage, "--{}: method {} has no such option; it has {}", name, method.name,
                 known.empty() ? "none" : fmt::format("{}", fmt::join(known, ", ")));
        field->set(value);
    }
    // What would be ignored in silence: a run that seems to adapt chosen layers, and does not.
    auto& targets = part.targets;
    const bool all_modules = targets.modules.empty() || targets.modules == Targets().modules;
    if (!method.takes_sites && (!all_modules || !targets.exclude.empty() || !targets.layers.empty()))
        fail(ErrorKind::usage,
             "--targets, --exclude and --layers: method {} adapts no chosen layers ({}); leave them out",
             method.name, method.summary);
    if (targets.modules.empty()) targets.modules = method.targets;
    return part;
}

AdaptedModel::AdaptedModel(std::unique_ptr<nn::Model> model, const AdapterConfig& config,
                           const RunBatch& run_batch)
    : model_(std::move(model)), parameters_(model_->device()), modules_to_save_(config.modules_to_save) {
    parts_.push_back(part_of(PartConfig{config.method, config.options, config.targets}));
    for (const auto& part : config.also)
        parts_.push_back(with_prefix("--and " + part.method, [&] { return part_of(part); }));
    save_modules(model_->new_modules());
    build(config.seed, /*from_file=*/false, run_batch);
}

void AdaptedModel::save_modules(const std::vector<std::string>& modules) {
    for (const auto& module : modules)
        if (std::find(modules_to_save_.begin(), modules_to_save_.end(), module) == modules_to_save_.end())
            modules_to_save_.push_back(module);
}

void AdaptedModel::build(uint64_t seed, bool from_file, const RunBatch& run_batch) {
    const auto& words = from_file ? kSavedTargets : kTypedTargets;
    // Of tied embeddings PEFT trains the use that is named, and the other stays as it is.
    const auto& saved = modules_to_save_;
    if (std::find(saved.begin(), saved.end(), model_->output_site().name()) != saved.end())
        model_->untie_output();
    const auto tensors = module_tensors(saved, *model_, words);
    if (std::find(tensors.begin(), tensors.end(), model_->embeddings().name) != tensors.end())
        model_->untie_output();
    for (const auto& name : tensors) train_copy(*model_, parameters_, name, name, nn::ParameterGroup::head);
    int several_passes = 0;
    for (size_t k = 0; k < parts_.size(); ++k) {
        auto& part = parts_[k];
        part.scope = scope_of(k, parts_.size());
        parameters_.enter(part.scope);
        // The first one's values do not depend on the others.
        const auto random = Random(seed).stream("adapter");
        auto make = [&] {
            if (part.method->takes_sites) choose_sites(part, words);
            MethodContext context{.model = *model_,
                                  .sites = part.targeted.sites,
                                  .parameters = parameters_,
                                  .random = k == 0 ? random : random.stream(k),
                                  .loading = from_file,
                                  .embeddings = part.targeted.embeddings,
                                  .headless = part.headless};
            if (run_batch) context.run_batch = [&] { run_batch(*model_); };
            return part.method->make(*part.options, context);
        };
        part.adapter = from_file ? in_words_of_file(*part.options, make)
                       : k == 0  ? make()
                                 : with_prefix(fmt::format("--and {}", part.method->name), make);
        check_order(part);
        check_weight(part);
        several_passes += part.adapter->forward_passes() > 1;
    }
    parameters_.enter("");
    if (several_passes > 1)
        fail(ErrorKind::usage,
             "--and: two of the methods run the model several times a step; take one of them");
    for (auto& site : model_->sites())
        if (std::any_of(parts_.begin(), parts_.end(), [&](const Part& part) { return holds(part, site); }))
            sites_.push_back(&site);
    // Methods that cannot stand behind one another are told before a run begins.
    const bool reads_biases = std::any_of(parts_.begin(), parts_.end(), [&](const Part& part) {
        return std::any_of(sites_.begin(), sites_.end(),
                           [&](const nn::Site* site) { return part.adapter->reads_bias(*site); });
    });
    if (parts_.size() > 1 && reads_biases && !from_file) bind(nn::Pass{data::Batch{}});
}

void AdaptedModel::choose_sites(Part& part, TargetWords words) {
    words.headless = part.headless;
    words.embeddings = part.method->takes_embeddings;
    auto& [sites, embeddings] = part.targeted = select(part.targets, *model_, words);
    // What is trained whole needs no adapter; PEFT ignores one there.
    std::erase_if(sites, [&](const nn::Site* site) { return parameters_.find(site->name() + ".weight"); });
    embeddings = embeddings && !parameters_.find(model_->embeddings().name);
    if (sites.empty() && !embeddings)
        fail(ErrorKind::usage, "{}: every layer that \"{}\" matches is trained whole already", words.modules,
             printable(part.targets.modules, kShownPattern));
}

// A method that works on the base's own weights would not see what those before it made of them.
void AdaptedModel::check_order(const Part& part) const {
    if (!part.adapter->reads_weights()) return;
    for (const auto& earlier : parts_) {
        if (&earlier == &part) return;
        const bool shares = part.method->takes_sites
                                ? std::any_of(part.targeted.sites.begin(), part.targeted.sites.end(),
                                              [&](const nn::Site* site) { return holds(earlier, *site); })
                                : !earlier.targeted.sites.empty();
        const bool trains_weights = !earlier.method->takes_sites && earlier.adapter->reads_weights();
        if (shares || trains_weights)
            fail(ErrorKind::usage,
                 "method {} works on the base model's own weights, so it cannot stand behind {} on the same "
                 "layers; put "
                 "it first, or merge {} into the model before",
                 part.method->name, earlier.method->name, earlier.method->name);
    }
}

// What replaces the base's tensors is there or not; a classification head is the task's and no part of the
// base.
void AdaptedModel::check_weight(const Part& part) const {
    if (part.weight == 1) return;
    const auto head = model_->shape().head == nn::Head::sequence_classification
                          ? nn::top_module(model_->output_site().name())
                          : "";
    for (const auto& [name, slots] : model_->tensors())
        for (const auto& parameter : parameters_.all())
            if (parameter.value.is_same(*slots.front()) &&
                (parameter.group == nn::ParameterGroup::head
                     ? part.holds_modules && nn::top_module(name) != head
                     : parameter.scope == part.scope))
                fail(ErrorKind::adapter,
                     "{}: trained the base's tensor \"{}\" itself, of which no part can be taken; give it "
                     "the weight 1",
                     part.name, name);
}

bool AdaptedModel::holds(const Part& part, const nn::Site& site) const {
    return std::find(part.targeted.sites.begin(), part.targeted.sites.end(), &site) !=
           part.targeted.sites.end();
}

void AdaptedModel::bind(const nn::Pass& pass) {
    for (nn::Site* site : sites_) site->forms = {}, site->weight_grad = {};
    model_->embeddings().forms = {};
    for (auto& part : parts_) {
        if (part.weight == 0) continue;
        if (part.name.empty())
            bind_targets(part, pass);
        else
            with_prefix(
                part.name, [&] { bind_targets(part, pass); }, ErrorKind::adapter);
    }
    bind_points(pass);
    bind_tokens(pass);
    model_->checkpoint_blocks(pass.checkpointed_blocks);
}

void AdaptedModel::bind_targets(Part& part, const nn::Pass& pass) {
    auto& adapter = *part.adapter;
    for (const nn::Site* site : sites_)
        if (!site->forms.output.empty() && adapter.reads_bias(*site))
            fail(
                ErrorKind::usage,
                "method {} works on the base model's own bias of {}, so it cannot stand behind a method that "
                "changes the layer's output; put it first, or merge the others into the model before",
                part.method->name, site->name());
    adapter.begin_pass(pass);
    auto& of_table = model_->embeddings().forms;
    of_table = nn::composed(of_table, nn::weighted(adapter.embedding_forms(pass), part.weight), {});
    for (nn::Site* site : part.targeted.sites) {
        auto forms = adapter.forms(*site, pass);
        if (part.weight != 1) forms = nn::weighted(forms, part.weight);
        site->forms =
            site->forms.empty() ? std::move(forms) : nn::composed(site->forms, forms, site->linear.bias);
        if (!adapter.wants_weight_grad(*site)) continue;
        site->weight_grad = [&adapter, site, next = site->weight_grad](const at::Tensor& gradient) {
            adapter.weight_grad(*site, gradient);
            if (next) next(gradient);
        };
    }
}

void AdaptedModel::bind_points(const nn::Pass& pass) {
    auto& points = model_->points();
    for (size_t layer = 0; layer < points.size(); ++layer) {
        points[layer] = {};
        for (auto& part : parts_) {
            if (part.weight == 0) continue;
            const auto own = part.adapter->points(static_cast<int64_t>(layer), pass);
            if (part.weight != 1 && !own.empty())
                fail(ErrorKind::adapter,
                     "{}: method {} inserts modules, of which no part can be taken; give it the weight 1",
                     part.name, part.method->name);
            if (!points[layer].join(own))
                fail(ErrorKind::usage,
                     "methods {}: two of them insert modules at the same place; take one of them",
                     method_name());
        }
    }
}

void AdaptedModel::bind_tokens(const nn::Pass& pass) {
    const nn::TokenRows*& bound = model_->embeddings().rows;
    bound = nullptr;
    for (auto& part : parts_) {
        const auto* rows = part.weight == 0 ? nullptr : part.adapter->tokens(pass);
        if (!rows) continue;
        if (part.weight != 1)
            fail(ErrorKind::adapter,
                 "{}: replaces embeddings of the base, of which no part can be taken; give it the weight 1",
                 part.name);
        if (bound)
            fail(ErrorKind::usage, "methods {}: two of them train embeddings of tokens; take one of them",
                 method_name());
        bound = rows;
    }
    if (bound && !model_->embeddings().forms.empty())
        fail(ErrorKind::usage,
             "methods {}: the word embeddings are adapted, and some of them trained; take one of the two",
             method_name());
    // As if it had been there before all methods.
    auto& head = model_->output_site();
    const bool adapted = std::find(sites_.begin(), sites_.end(), &head) != sites_.end();
    if (!adapted) head.forms = {};
    if (bound && model_->has_tied_output())
        head.forms = nn::composed(bound->as_forms(model_->embeddings().table), head.forms, head.linear.bias);
}

void AdaptedModel::activate(const std::map<std::string, double>& weights) {
    for (const auto& [name, weight] : weights)
        if (std::none_of(parts_.begin(), parts_.end(), [&](const Part& part) { return part.name == name; }))
            fail(ErrorKind::adapter, "no adapter \"{}\" is loaded", name);
    for (auto& part : parts_) {
        const auto found = weights.find(part.name);
        part.weight = found == weights.end() ? 0 : found->second;
        check_weight(part);
    }
}

at::Tensor AdaptedModel::hidden(const nn::Pass& pass) {
    if (!pass.bound) bind(pass);
    return model_->hidden(pass);
}

at::Tensor AdaptedModel::logits(const nn::Pass& pass) {
    if (!pass.bound) bind(pass);
    return model_->logits(pass);
}

void AdaptedModel::check_run(const RunPlan& plan) const {
    for (const auto& part : parts_) part.adapter->check_run(plan);
}

int AdaptedModel::forward_passes() const {
    int passes = 1;
    for (const auto& part : parts_) passes = std::max(passes, part.adapter->forward_passes());
    return passes;
}

at::Tensor AdaptedModel::extra_loss(const std::vector<at::Tensor>& logits) {
    at::Tensor sum;
    for (auto& part : parts_)
        if (const auto loss = part.adapter->extra_loss(logits); loss.defined())
            sum = sum.defined() ? sum + loss : loss;
    return sum;
}

bool AdaptedModel::wants_weight_grad() {
    return std::any_of(parts_.begin(), parts_.end(), [](Part& part) {
        return std::any_of(part.targeted.sites.begin(), part.targeted.sites.end(),
                           [&](const nn::Site* site) { return part.adapter->wants_weight_grad(*site); });
    });
}

void AdaptedModel::after_backward(const Progress& progress) {
    for (auto& part : parts_) part.adapter->after_backward(progress);
}

void AdaptedModel::after_update(const Update& update) {
    for (auto& part : parts_) part.adapter->after_update(update);
}

std::string AdaptedModel::method_name() const {
    std::string text;
    for (const auto& part : parts_)
        text += fmt::format("{}{}", text.empty() ? "" : " and ", part.method->name);
    return text;
}

const Method* AdaptedModel::method_without_sites() const {
    for (const auto& part : parts_)
        if (!part.method->takes_sites && part.weight != 0) return part.method;
    return nullptr;
}

bool AdaptedModel::inserts_modules() {
    const data::Batch nothing;
    for (auto& part : parts_)
        for (int64_t layer = 0; part.weight != 0 && layer < model_->shape().layers; ++layer)
            if (!part.adapter->points(layer, {.batch = nothing}).empty()) return true;
    return false;
}

int64_t AdaptedModel::method_parameters() const {
    return parameters_.count(nn::ParameterGroup::adapter) + parameters_.count(nn::ParameterGroup::base);
}

double AdaptedModel::learning_rate(const nn::Parameter& parameter, double rate) const {
    for (size_t k = 1; k < parts_.size(); ++k)
        if (parts_[k].scope == parameter.scope) return parts_[k].lr.value_or(parts_[k].method->learning_rate);
    return rate;
}

std::vector<std::pair<std::string, at::Tensor>> AdaptedModel::merged_tensors(at::ScalarType dtype) {
    const at::NoGradGuard no_grad;
    const auto wide = model_->dtype() == at::kDouble ? at::kDouble : at::kFloat;
    if (inserts_modules())
        fail(ErrorKind::adapter,
             "an adapter of {} inserts modules, for which the base model has no place, so it cannot be "
             "merged; use "
             "the adapter with --adapter",
             method_name());
    bind(nn::Pass{data::Batch{}});
    std::map<std::string, at::Tensor> tensors;
    for (const auto& [name, slots] : model_->tensors()) tensors[name] = slots.front()->detach();
    if (const auto* rows = model_->embeddings().rows) {
        auto& table = tensors.at(model_->embeddings().name);
        table = rows->in(table.to(wide));
    }
    if (const auto& embeddings = model_->embeddings(); !embeddings.forms.empty()) {
        auto& table = tensors.at(embeddings.name);
        if (model_->has_tied_output()) tensors[model_->output_site().name() + ".weight"] = table;
        table = nn::merged(embeddings.forms, table.t().to(wide), {}).first.t();
    }
    for (const nn::Site* site : sites_) {
        const auto& bias = site->linear.bias;
        const auto [weight, shifted] = nn::merged(site->forms, site->linear.weight.detach().to(wide),
                                                  bias.defined() ? bias.detach().to(wide) : bias);
        tensors[site->name() + ".weight"] = weight;
        if (shifted.defined()) tensors[site->name() + ".bias"] = shifted;
    }
    std::vector<std::pair<std::string, at::Tensor>> result;
    for (const auto& [name, tensor] : tensors) result.emplace_back(name, tensor.to(dtype).contiguous());
    return result;
}

}  // namespace ether::methods
