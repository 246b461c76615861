#include "ether/train/trainer.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <nlohmann/json.hpp>

#include "ether/core/error.h"
#include "ether/core/hash.h"
#include "ether/core/interrupt.h"
#include "ether/core/memory.h"
#include "ether/core/parallel.h"
#include "ether/io/atomic.h"
#include "ether/io/checkpoint.h"
#include "ether/io/file.h"
#include "ether/io/hub_cache.h"
#include "ether/models/registry.h"
#include "ether/ops/device.h"
#include "ether/ops/gpu/launcher.h"
#include "ether/tasks/classification.h"
#include "ether/train/gradient.h"
#include "ether/train/learning_curve.h"
#include "ether/train/memory.h"
#include "ether/train/metrics_log.h"
#include "ether/train/schedule.h"

namespace ether::train {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

// A return costs the page faults of about one step.
constexpr int64_t kStepsBetweenReturns = 64;

double seconds_since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
}

// Where the model has a classification head for just these labels, the task takes the head's order of them.
// Returns whether it does.
bool adopt_own_head(const io::Checkpoint& checkpoint, std::unique_ptr<tasks::Task>& task) {
    const auto classes = models::stored_classes(checkpoint);
    if (!classes || *classes != task->classes()) return false;
    const auto* classification = dynamic_cast<const tasks::Classification*>(task.get());
    if (!classification) return true;  // a regression's single output
    auto own = models::stored_class_names(checkpoint, *classes), wanted = classification->labels().names();
    auto sorted = own;
    std::sort(sorted.begin(), sorted.end());
    std::sort(wanted.begin(), wanted.end());
    if (sorted != wanted) return false;
    task = std::make_unique<tasks::Classification>(
        data::LabelSet::from_names(std::move(own), checkpoint.config().name()));
    return true;
}

// Tells data sets apart: a hash over all that a model is given of them.
std::string hash_of(const std::vector<data::Sequence>& sequences) {
    Hash hash;
    auto add = [&](const std::vector<int64_t>& values) {
        hash.add(values.data(), values.size() * sizeof(int64_t));
    };
    for (const auto& sequence : sequences) {
        add(sequence.ids), add(sequence.type_ids), add(sequence.targets);
        hash.add(&sequence.label, sizeof(sequence.label));
    }
    return hash.hex();
}

std::string hash_of(std::string_view text) {
    Hash hash;
    hash.add(text);
    return hash.hex();
}

// What a killed process left half-written: files, and among checkpoints folders.
void remove_leftovers(const fs::path& folder, bool are_folders) {
    std::error_code ignored;
    for (const auto& entry : fs::directory_iterator(folder, ignored))
        if (const auto name = entry.path().filename().string();
            io::final_name(name) != name && entry.is_directory(ignored) == are_folders)
            fs::remove_all(entry.path(), ignored);
}

// A run that was killed before it had its run.toml leaves empty logs and checkpoints at most; anything else
// is someone's.
void refuse_foreign_files(const fs::path& folder) {
    std::error_code ignored;
    for (const auto& entry : fs::directory_iterator(folder / "checkpoints", ignored))
        if (!is_checkpoint_name(io::final_name(entry.path().filename().string())))
            fail(ErrorKind::file, "{}: no run made this, and one would remove it; choose another --out",
                 entry.path().string());
    if (io::has_entry(folder / "config.json"))
        fail(ErrorKind::file, "{}: the folder holds a model; choose another --out", folder.string());
    for (const char* name : {kMetricsFile, "adapter_config.json", "adapter_model.safetensors", "ether.json",
                             kLearningCurveFile, kLearningCurvePage}) {
        std::error_code missing;
        if (fs::file_size(folder / name, missing) > 0 && !missing)
            fail(ErrorKind::file,
                 "{}: the folder has no {} but holds {}, which a run would replace; choose another --out",
                 folder.string(), io::kRunFile, name);
    }
}

[[noreturn]] void fail_holds_a_run(const fs::path& folder) {
    fail(ErrorKind::file,
         "{}: the folder holds a run already; continue it with ether train --resume {}, or choose another "
         "--out",
         folder.string(), folder.string());
}

// What an order of sums depends on.
std::string machine(const nn::Model& model) {
    return model.device().is_cpu() ? fmt::format("cpu, {} threads", num_threads()) : model.device().str();
}

}  // namespace

Trainer::Trainer(RunConfig config, bool resume, std::vector<Callback*> callbacks)
    : config_(std::move(config)), resume_(resume), callbacks_(std::move(callbacks)), state_(config_.out) {
    config_.check();
    toml_ = to_toml(config_);  // whether it can be kept is told before anything else
    const fs::path out = config_.out;
    if (resume_ && !io::has_entry(out / io::kRunFile))
        fail(ErrorKind::file, "{}: there is no run to resume ({} is missing)", out.string(), io::kRunFile);
    if (!resume_ && io::has_entry(out / io::kRunFile)) fail_holds_a_run(out);
    if (!resume_) refuse_foreign_files(out);
    if (config_.threads > 0) set_num_threads(static_cast<int>(config_.threads));

    const auto device = ops::device_named(config_.device);
    const auto checkpoint = io::Checkpoint::open(io::resolve_model(config_.model));
    auto table = config_.columns;
    table.labels_required = config_.task == "classify";
    const auto examples = data::read_examples(config_.data, table);
    task_ = tasks::make_task(config_.task, examples, config_.data);
    const bool own_head = adopt_own_head(checkpoint, task_);
    auto model = models::load_model(checkpoint, {.head = task_->head(),
                                                 .classes = task_->classes(),
                                                 .new_head = !own_head,
                                                 .dtype = dtype_named(config_.dtype),
                                                 .seed = static_cast<uint64_t>(config_.seed),
                                                 .device = device});
    const auto tokenizer = text::Tokenizer::load(checkpoint.path(), tasks::embedding_rows(model->shape()));
    model->check_finite(checkpoint.path().string());
    const int64_t positions = model->shape().max_positions;
    if (config_.max_length > positions)
        fail(ErrorKind::usage, "--max-length: {} is more than the model's {} positions", config_.max_length,
             positions);
    max_length_ = config_.max_length ? config_.max_length : std::min(tasks::kDefaultMaxLength, positions);
    auto adapter_config = config_.adapter_config();
    // A head that the model brings is trained like a new one, as in PEFT's SEQ_CLS.
    if (own_head) adapter_config.modules_to_save.push_back(model->output_site().name());
    const auto read = [&] {
        if (training_.empty()) read_data(tokenizer, examples);
    };
    // What the data need not be read for is checked before.
    model_ = std::make_unique<methods::AdaptedModel>(
        std::move(model), adapter_config,
        [&, next = size_t{0}](const nn::Model& base) mutable { read(), run_base(base, next++); });
    if (const int64_t left = model_->model().shape().max_positions; max_length_ > left) {
        if (config_.max_length)
            fail(ErrorKind::usage,
                 "--max-length: {} is more than the {} positions that method {} leaves a text",
                 config_.max_length, left, model_->method_name());
        max_length_ = left;
        training_.clear();
    }
    if (model_->parameters().count() == 0)
        fail(ErrorKind::usage,
             "--method {}: nothing would be trained; choose another method or name --modules-to-save",
             config_.method);
    fingerprint_ = checkpoint.fingerprint();

    read();
    inputs_ = {{"the base model", fingerprint_},
               {"the base model's config.json", hash_of(checkpoint.config().document().dump())},
               {"the base model's tokenizer.json",
                hash_of(io::read_text_file(checkpoint.path() / "tokenizer.json"))},
               {"the training data", hash_of(training_)},
               {"the evaluation data", hash_of(evaluation_)},
               {"the labels' names", hash_of(task_->describe().dump())}};
    // A step's examples are ordered as one batch and then cut, so that accumulation changes nothing.
    order_ = std::make_unique<data::EpochOrder>(
        data::lengths_of(training_),
        data::OrderOptions{static_cast<uint64_t>(config_.seed), config_.batch * config_.accumulate,
                           config_.bucketing});
    steps_per_epoch_ = order_->batches_per_epoch();
    total_steps_ =
        config_.max_steps
            ? config_.max_steps
            : std::max<int64_t>(1, std::llround(config_.epochs * static_cast<double>(steps_per_epoch_)));
    choose_memory_mode();
    optimizer_ = std::make_unique<AdamW>(make_optimizer());
}

void Trainer::read_data(const text::Tokenizer& tokenizer, const std::vector<data::Example>& examples) {
    const tasks::TextOptions options{.max_length = max_length_};
    training_ = task_->encode(examples, config_.data, tokenizer, options);
    if (config_.eval_data.empty()) return;
    auto table = config_.columns;
    table.labels_required = task_->labels_required();
    evaluation_ =
        task_->encode(data::read_examples(config_.eval_data, table), config_.eval_data, tokenizer, options);
}

// The base model on the number-th batch of an order of its own.
void Trainer::run_base(const nn::Model& base, size_t number) {
    if (number == 0)
        epoch_batches_ = data::EpochOrder(data::lengths_of(training_), {static_cast<uint64_t>(config_.seed),
                                                                        config_.batch, config_.bucketing})
                             .epoch(0);
    const auto& rows = epoch_batches_[number % epoch_batches_.size()];
    const auto batch = data::collate(training_, rows, task_->label_type()).to(base.device());
    const at::NoGradGuard no_grad;
    if (task_->head() == nn::Head::causal_lm && !base.output_site().watch)
        base.hidden({.batch = batch});
    else
        base.logits({.batch = batch});
}

AdamW Trainer::make_optimizer() {
    std::vector<OptimizedParameter> parameters;
    const bool only_whole = model_->parameters().count(nn::ParameterGroup::adapter) == 0;
    for (const auto& parameter : model_->parameters().trained()) {
        const bool adapter = parameter.group == nn::ParameterGroup::adapter;
        const bool head = parameter.group == nn::ParameterGroup::head;
        // A run that trains nothing but a head does so at --lr.
        const bool head_alone =
            head && only_whole && model_->parameters().count(nn::ParameterGroup::base) == 0;
        parameters.push_back({parameter.name, parameter.value,
                              head && !head_alone ? config_.head_lr
                                                  : model_->learning_rate(parameter, config_.learning_rate()),
                              adapter ? 0.0 : config_.weight_decay});
    }
    return AdamW(std::move(parameters));
}

void Trainer::choose_memory_mode() {
    const auto training = largest_batch(data::lengths_of(training_), config_.batch),
               evaluation = largest_batch(data::lengths_of(evaluation_), config_.eval_batch);
    const int64_t available = ops::free_memory(model_->model().device());
    const auto estimate = estimate_memory(*model_, training, evaluation);
    if (config_.checkpoint_activations)
        checkpointed_blocks_ = estimate.blocks;
    else if (can_checkpoint(*model_))
        checkpointed_blocks_ = estimate.blocks_to_checkpoint(available);
    if (!config_.force) check_memory(estimate, checkpointed_blocks_, available, resume_);
}

RunInfo Trainer::info(int64_t first_step) const {
    const auto& parameters = model_->parameters();
    return {
        .folder = config_.out,
        .first_step = first_step,
        .total_steps = total_steps_,
        .steps_per_epoch = steps_per_epoch_,
        .adapter_parameters = model_->method_parameters(),
        .head_parameters = parameters.count(nn::ParameterGroup::head),
        .model_parameters = model_->model().parameter_count(),
        .training_examples = static_cast<int64_t>(training_.size()),
        .eval_examples = static_cast<int64_t>(evaluation_.size()),
        .device = fmt::format("{}, {}", machine(model_->model()), io::dtype_name(model_->model().dtype())),
        .blocks = model_->model().shape().layers,
        .checkpointed_blocks = checkpointed_blocks_,
        .method = config_.method_names(),
        .learning_rate = config_.learning_rate(),
        .warnings = warnings_};
}

void Trainer::fail_not_finite(const char* what, double value, int64_t step) const {
    const auto checkpoint = state_.newest();
    fail(ErrorKind::numeric,
         "the {} became {} at step {} with learning rate {:g}; the last good checkpoint is {}; try a lower "
         "--lr",
         what, value, step, config_.learning_rate(), checkpoint ? checkpoint->string() : "none");
}

StepReport Trainer::train_step(int64_t step) {
    const auto start = Clock::now();
    const int64_t epoch = step / steps_per_epoch_;
    if (loaded_epoch_ != epoch) {
        epoch_batches_ = order_->epoch(epoch);
        loaded_epoch_ = epoch;
    }
    const auto& rows = epoch_batches_[static_cast<size_t>(step % steps_per_epoch_)];
    const auto random =
        Random(static_cast<uint64_t>(config_.seed)).stream("dropout").stream(static_cast<uint64_t>(step));
    const auto sums =
        accumulate_gradients(*model_, *task_, training_, rows, {config_.batch, random, checkpointed_blocks_});
    if (!std::isfinite(sums.loss)) fail_not_finite("loss", sums.loss, step + 1);
    StepReport report;
    report.loss = sums.loss;
    report.tokens = sums.tokens;
    model_->after_backward({step, total_steps_});
    const double norm = optimizer_->gradient_norm();
    if (!std::isfinite(norm)) fail_not_finite("gradient's norm", norm, step + 1);
    const double factor = schedule_factor(schedule_named(config_.schedule), step, total_steps_,
                                          std::llround(config_.warmup * static_cast<double>(total_steps_)));
    const double scale = config_.clip > 0 && norm > config_.clip ? config_.clip / norm : 1.0;
    optimizer_->step(factor, scale);
    model_->after_update({.step = step + 1, .total = total_steps_, .gradient_scale = scale});
    model_->parameters().clear_grads();
    report.step = step + 1;
    report.epoch = static_cast<double>(step + 1) / static_cast<double>(steps_per_epoch_);
    report.learning_rate = factor * config_.learning_rate();
    report.gradient_norm = norm;
    report.seconds = seconds_since(start);
    return report;
}

void Trainer::evaluate(RunProgress& progress) {
    const auto start = Clock::now();
    EvalReport report{.step = progress.step,
                      .scores = task_->evaluate(*model_, evaluation_, config_.eval_batch)};
    report.seconds = seconds_since(start);
    const double score = report.scores.at(task_->main_score());
    if (const double loss = report.scores.at("loss"); !std::isfinite(loss))
        fail_not_finite("loss on evaluation data", loss, progress.step);
    report.best = !progress.best_score ||
                  (task_->higher_is_better() ? score > *progress.best_score : score < *progress.best_score);
    if (report.best) {
        progress.best_score = score;
        progress.best_step = progress.step;
        progress.evaluations_without_best = 0;
        save_adapter();
    } else {
        ++progress.evaluations_without_best;
    }
    for (auto* callback : callbacks_) callback->on_evaluation(report);
}

void Trainer::save_adapter() {
    lock_->check();
    // Named as in run.toml: a resumed run must write the same adapter_config.json.
    auto files = model_->files(from_anywhere(config_.model));
    files.ether = tasks::adapter_description(*task_, fingerprint_, max_length_, config_.columns);
    io::write_adapter(config_.out, files);
}

void Trainer::save_checkpoint(RunProgress& progress) {
    lock_->check();
    for (auto* callback : callbacks_) {
        const auto name = callback->log_name();
        if (name.empty()) continue;
        progress.log_bytes[name] = callback->log_bytes();
        if (callback->lost_log())
            for (auto* told : callbacks_)
                told->on_warning(
                    fmt::format("{}/{} was removed or replaced while the run went on; what was "
                                "written since is lost",
                                config_.out, name));
    }
    state_.save(progress, model_->parameters(), *optimizer_, config_.keep);
}

void Trainer::open_folder(RunProgress& progress) {
    lock_ = std::make_unique<RunLock>(config_.out);
    const fs::path out = config_.out;
    // Another process may have begun and ended a run since the constructor looked.
    if (!resume_ && io::has_entry(out / io::kRunFile)) fail_holds_a_run(out);
    if (!resume_) refuse_foreign_files(out);
    remove_leftovers(out, /*are_folders=*/false);
    remove_leftovers(out / "checkpoints", /*are_folders=*/true);
    if (!resume_) {
        state_.clear();
        progress.inputs = inputs_;
        progress.machine = machine(model_->model());
        progress.settings = deciding_settings(config_);
        return;
    }
    resume(progress);
}

void Trainer::resume(RunProgress& progress) {
    std::vector<std::string> skipped;
    progress = state_.load(
        model_->parameters(), *optimizer_, [this](const RunProgress& found) { check_same_run(found); },
        skipped);
    for (const auto& reason : skipped)
        warnings_.push_back(fmt::format(
            "a newer checkpoint cannot be read, so the run goes on from step {}: {}", progress.step, reason));
    if (const auto now = machine(model_->model()); progress.machine != now && !progress.finished)
        warnings_.push_back(
            fmt::format("the run began on {} and goes on on {}: sums are added in another "
                        "order, so its end differs by rounding; --threads and --device keep it",
                        progress.machine, now));
    restore_adapter(progress);
    state_.remove_old(progress.step, config_.keep);  // a kill may have come before the last save did so
    for (auto* callback : callbacks_) {
        const auto log = progress.log_bytes.find(callback->log_name());
        if (log == progress.log_bytes.end()) continue;
        std::error_code missing;
        if (log->second > 0 && (fs::file_size(fs::path(config_.out) / log->first, missing) == 0 || missing)) {
            warnings_.push_back(fmt::format("{}/{} is gone or empty; it begins anew after step {}",
                                            config_.out, log->first, progress.step));
            log->second = 0;
            begins_log_anew_ = true;
        }
        callback->resume_log(log->second);
    }
}

void Trainer::check_same_run(const RunProgress& progress) const {
    const fs::path out = config_.out;
    for (const auto& [name, hash] : inputs_)
        if (const auto found = progress.inputs.find(name);
            found == progress.inputs.end() || found->second != hash)
            fail(ErrorKind::data,
                 "{}: {} is not what the run began with, so it cannot go on; put it back, or start a new run "
                 "with another --out",
                 out.string(), name);
    for (const auto& [name, value] : deciding_settings(config_))
        if (const auto found = progress.settings.find(name);
            found != progress.settings.end() && found->second != value)
            fail(ErrorKind::data,
                 "{}: {} is \"{}\", but the run began with \"{}\"; put that back, or start a new run with "
                 "--config and another --out",
                 (out / io::kRunFile).string(), name, value, found->second);
    if (progress.step > total_steps_)
        fail(ErrorKind::format, "{}: the checkpoint is of step {}, but the run has {}", out.string(),
             progress.step, total_steps_);
}

// Where the best adapter's files are gone, by hand or by a kill in the moment in which one takes another's
// place.
void Trainer::restore_adapter(RunProgress& progress) {
    const bool saved = progress.best_score || (progress.finished && evaluation_.empty());
    if (!saved || io::has_adapter(config_.out)) return;
    if (evaluation_.empty() || progress.best_step == progress.step) {
        save_adapter();
        return;
    }
    if (progress.finished)
        fail(ErrorKind::file,
             "{}: the run is finished, but the adapter of step {}, its best, is not there any more; put it "
             "back "
             "or start a new run with another --out",
             config_.out, progress.best_step);
    warnings_.push_back(
        fmt::format("the adapter of step {}, the best so far, is not in the folder any more; the next "
                    "evaluation counts as the best",
                    progress.best_step));
    progress.best_score.reset();
}

RunResult Trainer::run() {
    RunProgress progress;
    open_folder(progress);
    if (const auto missing = ops::missing_compiler(); model_->model().device().is_cuda() && !missing.empty())
        warnings_.push_back("kernels for the GPU cannot be compiled, so steps take several times as long: " +
                            missing);
    for (auto* callback : callbacks_) callback->on_start(info(progress.step));
    if (begins_log_anew_) save_checkpoint(progress);  // which counts on what is there no more
    if (!resume_) {
        // run.toml comes last: a folder that has it can be resumed, one that lacks it can be started in.
        save_checkpoint(progress);
        io::write_file_atomic(fs::path(config_.out) / io::kRunFile, toml_);
    }

    RunResult result;
    const auto start = Clock::now();
    const int64_t save_every = config_.save_every ? config_.save_every : steps_per_epoch_;
    const int64_t eval_every = config_.eval_every ? config_.eval_every : steps_per_epoch_;
    while (progress.step < total_steps_ && !progress.finished) {
        if ((result.interrupted_by = interrupt_signal())) break;  // what is done is saved
        const auto report = train_step(progress.step);
        progress.step = report.step;
        progress.loss = report.loss;
        if (progress.step % kStepsBetweenReturns == 0) return_freed_memory();
        for (auto* callback : callbacks_) callback->on_step(report);
        const bool last = progress.step == total_steps_;
        if (!evaluation_.empty() && (last || progress.step % eval_every == 0)) {
            evaluate(progress);
            progress.stopped_early =
                config_.patience > 0 && progress.evaluations_without_best >= config_.patience;
        }
        const bool interrupted = interrupt_signal() != 0;
        progress.finished = last || progress.stopped_early;
        if (progress.finished && evaluation_.empty()) save_adapter();
        if (progress.finished || interrupted || progress.step % save_every == 0) save_checkpoint(progress);
    }
    for (auto* callback : callbacks_) callback->on_end();
    result.steps = progress.step;
    result.final_loss = progress.loss;
    result.stopped_early = progress.stopped_early;
    result.best_step = progress.best_step;
    result.best_score = progress.best_score;
    result.best_score_name = task_->main_score();
    result.seconds = seconds_since(start);
    return result;
}

}  // namespace ether::train
