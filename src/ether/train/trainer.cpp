#include "ether/train/trainer.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "ether/core/error.h"
#include "ether/core/interrupt.h"
#include "ether/core/memory.h"
#include "ether/core/parallel.h"
#include "ether/core/utf8.h"
#include "ether/io/adapter_folder.h"
#include "ether/io/atomic.h"
#include "ether/io/file.h"
#include "ether/ops/device.h"
#include "ether/ops/gpu/launcher.h"
#include "ether/train/gradient.h"
#include "ether/train/memory.h"
#include "ether/train/run_folder.h"
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

// What an order of sums depends on.
std::string machine(const nn::Model& model, const MemoryMode& memory) {
    auto text =
        model.device().is_cpu() ? fmt::format("cpu, {} threads", num_threads()) : model.device().str();
    if (memory.piece_tokens) text += fmt::format(", in pieces of {} tokens", memory.piece_tokens);
    return text;
}

}  // namespace

Trainer::Trainer(RunConfig config, bool resume, std::vector<Callback*> callbacks)
    : config_(std::move(config)), resume_(resume), callbacks_(std::move(callbacks)), state_(config_.out) {
    config_.check();
    toml_ = to_toml(config_);  // whether it can be kept is told before anything else
    if (const auto base = from_anywhere(config_.model); find_invalid_utf8(base) != std::string::npos)
        fail(ErrorKind::usage,
             "--model: {} is not UTF-8, so no adapter_config.json can name it; rename the folder",
             printable(base));
    check_run_folder(config_.out, resume_);
    if (config_.threads > 0) set_num_threads(static_cast<int>(config_.threads));
    setup_ = read_setup(config_);
    warnings_ = setup_.notes;
    for (const auto& data : {config_.data, config_.eval_data})
        if (std::error_code ignored; !resume_ && fs::is_fifo(data, ignored))
            warnings_.push_back(
                fmt::format("{} is a pipe: where the run is stopped, it goes on only if the same data come "
                            "from there again",
                            data));
    // A step's examples are ordered as one batch and then cut, so that accumulation changes nothing.
    order_ = std::make_unique<data::EpochOrder>(
        data::lengths_of(setup_.training),
        data::OrderOptions{static_cast<uint64_t>(config_.seed), config_.batch * config_.accumulate,
                           config_.bucketing});
    steps_per_epoch_ = order_->batches_per_epoch();
    total_steps_ =
        config_.max_steps
            ? config_.max_steps
            : std::max<int64_t>(1, std::llround(config_.epochs * static_cast<double>(steps_per_epoch_)));
    setup_.model->check_run({.steps = total_steps_, .accumulate = config_.accumulate});
    memory_ = choose_memory(*setup_.model, config_, data::lengths_of(setup_.training),
                            data::lengths_of(setup_.evaluation),
                            ops::free_memory(setup_.model->model().device()), resume_);
    warnings_.insert(warnings_.end(), memory_.warnings.begin(), memory_.warnings.end());
    optimizer_ = std::make_unique<AdamW>(make_optimizer());
    graphs_ = PassGraphs::of(*setup_.model);
}

AdamW Trainer::make_optimizer() {
    const auto& model = *setup_.model;
    const auto head = nn::top_module(model.model().output_site().name());
    const bool classifies = model.model().shape().head == nn::Head::sequence_classification;
    const auto rate_of = [&](const nn::Parameter& parameter) {
        const bool whole = parameter.group == nn::ParameterGroup::head;
        // A run that trains nothing but whole modules does so at --lr, and so do all methods of an adapter
        // that is trained on: its file does not tell their rates.
        if ((whole && model.method_parameters() == 0) || (!whole && !config_.adapter.empty()))
            return config_.learning_rate();
        if (!whole) return model.learning_rate(parameter, config_.learning_rate());
        return classifies && nn::top_module(parameter.name) == head ? config_.head_lr : config_.module_lr;
    };
    std::vector<OptimizedParameter> parameters;
    for (const auto& parameter : model.parameters().trained())
        parameters.push_back({parameter.name, parameter.value, rate_of(parameter),
                              parameter.group == nn::ParameterGroup::adapter ? config_.adapter_weight_decay
                                                                             : config_.weight_decay});
    return AdamW(std::move(parameters));
}

RunInfo Trainer::info(int64_t first_step) const {
    const auto& parameters = setup_.model->parameters();
    const int64_t classes = setup_.task->classes();
    return {.folder = config_.out,
            .first_step = first_step,
            .total_steps = total_steps_,
            .steps_per_epoch = steps_per_epoch_,
            .adapter_parameters = setup_.model->method_parameters(),
            .head_parameters = parameters.count(nn::ParameterGroup::head),
            .model_parameters = setup_.model->model().parameter_count(),
            .training_examples = static_cast<int64_t>(setup_.training.size()),
            .eval_examples = static_cast<int64_t>(setup_.evaluation.size()),
            .device = fmt::format("{}, {}", machine(setup_.model->model(), memory_.mode),
                                  io::dtype_name(setup_.model->model().dtype())),
            .blocks = setup_.model->model().shape().layers,
            .checkpointed_blocks = memory_.mode.checkpointed_blocks,
            .method = setup_.model->method_name(),
            .task = classes > 1 ? fmt::format("{} classes", classes) : setup_.task->name(),
            .learning_rate = config_.learning_rate(),
            .warnings = warnings_};
}

double Trainer::rate_factor(int64_t step) const {
    return schedule_factor(schedule_named(config_.schedule), step, total_steps_,
                           std::llround(config_.warmup * static_cast<double>(total_steps_)));
}

void Trainer::fail_not_finite(const char* what, double value, int64_t step) const {
    const auto checkpoint = state_.newest();
    const double rate = rate_factor(step) * config_.learning_rate();
    fail(ErrorKind::numeric,
         "the {} became {} at step {} with learning rate {:g}{}; the last good checkpoint is {}; try a lower "
         "--lr",
         what, value, step + 1, rate,
         rate == config_.learning_rate() ? "" : fmt::format(" (of --lr {:g})", config_.learning_rate()),
         checkpoint ? checkpoint->string() : "none");
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
    const auto sums = accumulate_gradients(*setup_.model, *setup_.task, setup_.training, rows,
                                           {config_.batch, random, memory_.mode, graphs_.get()});
    if (!std::isfinite(sums.loss)) fail_not_finite("loss", sums.loss, step);
    StepReport report;
    report.loss = sums.loss;
    report.tokens = sums.tokens;
    setup_.model->after_backward({step, total_steps_});
    const double norm = optimizer_->gradient_norm();
    if (!std::isfinite(norm)) fail_not_finite("gradient's norm", norm, step);
    const double factor = rate_factor(step);
    const double scale = config_.clip > 0 && norm > config_.clip ? config_.clip / norm : 1.0;
    optimizer_->step(factor, scale);
    setup_.model->after_update({.step = step + 1, .total = total_steps_, .gradient_scale = scale});
    setup_.model->parameters().clear_grads();
    report.step = step + 1;
    report.epoch = static_cast<double>(step + 1) / static_cast<double>(steps_per_epoch_);
    report.learning_rate = factor * config_.learning_rate();
    report.gradient_norm = norm;
    report.seconds = seconds_since(start);
    return report;
}

bool Trainer::evaluate(RunProgress& progress) {
    const auto start = Clock::now();
    EvalReport report{.step = progress.step};
    try {
        report.scores = setup_.task->evaluate(*setup_.model, setup_.evaluation, memory_.eval_batch);
    } catch (const Interrupted&) {
        return false;
    }
    report.seconds = seconds_since(start);
    const double score = report.scores.at(setup_.task->main_score());
    if (const double loss = report.scores.at("loss"); !std::isfinite(loss))
        fail_not_finite("loss on evaluation data", loss, progress.step - 1);
    report.best = !progress.best_score || (setup_.task->higher_is_better() ? score > *progress.best_score
                                                                           : score < *progress.best_score);
    if (report.best) {
        progress.best_score = score;
        progress.best_step = progress.step;
        progress.evaluations_without_best = 0;
        save_adapter();
    } else {
        ++progress.evaluations_without_best;
    }
    for (auto* callback : callbacks_) callback->on_evaluation(report);
    return true;
}

void Trainer::check_before_saving() {
    lock_->check();
    setup_.base->check();
}

void Trainer::save_adapter() {
    check_before_saving();
    // Named as in run.toml: a resumed run must write the same adapter_config.json.
    auto files = setup_.model->files(from_anywhere(config_.model));
    files.ether =
        tasks::adapter_description(*setup_.task, setup_.base->identity(), setup_.max_length, config_.columns);
    io::write_adapter(config_.out, files);
}

void Trainer::save_checkpoint(RunProgress& progress) {
    check_before_saving();
    for (auto* callback : callbacks_) {
        const auto name = callback->log_name();
        if (name.empty()) continue;
        progress.logs[name] = callback->log_mark();
        if (callback->lost_log())
            for (auto* told : callbacks_)
                told->on_warning(fmt::format(
                    "{}/{} was removed, replaced or written to by others while the run went on; some of it "
                    "may be lost",
                    config_.out, name));
    }
    state_.save(progress, setup_.model->parameters(), *optimizer_, config_.keep);
}

void Trainer::open_folder(RunProgress& progress) {
    lock_ = std::make_unique<RunLock>(config_.out);
    // Another process may have begun and ended a run since the constructor looked.
    check_run_folder(config_.out, resume_);
    remove_leftovers(config_.out);
    if (!resume_) {
        state_.clear();
        progress.inputs = setup_.inputs;
        progress.machine = machine(setup_.model->model(), memory_.mode);
        progress.piece_tokens = memory_.mode.piece_tokens;
        progress.settings = deciding_settings(config_);
        return;
    }
    resume(progress);
}

void Trainer::resume(RunProgress& progress) {
    std::vector<std::string> skipped;
    progress = state_.load(
        setup_.model->parameters(), *optimizer_, [this](const RunProgress& found) { check_same_run(found); },
        skipped);
    for (const auto& reason : skipped)
        warnings_.push_back(fmt::format(
            "a newer checkpoint cannot be read, so the run goes on from step {}: {}", progress.step, reason));
    // More memory is free than when the run began, whose sums it goes on with.
    if (config_.memory == "auto" && memory_.mode.piece_tokens == 0 && can_pass_in_pieces(*setup_.model))
        memory_.mode.piece_tokens = progress.piece_tokens;
    if (const auto now = machine(setup_.model->model(), memory_.mode);
        progress.machine != now && !progress.finished)
        warnings_.push_back(
            fmt::format("the run began on {} and goes on on {}: sums are added in another "
                        "order, so its end differs by rounding; --threads, --device and --memory keep it",
                        progress.machine, now));
    if (!progress.finished)
        for (const auto& folder : {fs::path(config_.out), fs::path(config_.out) / kCheckpointsFolder})
            if (::access(folder.c_str(), W_OK | X_OK) != 0)
                fail(ErrorKind::file, "{}: cannot write there: {}; a run saves what it has done",
                     folder.string(), std::strerror(errno));
    restore_adapter(progress);
    state_.remove_old(progress.step, config_.keep);  // a kill may have come before the last save did so
    for (auto* callback : callbacks_) {
        const auto log = progress.logs.find(callback->log_name());
        if (log == progress.logs.end()) continue;
        const auto path = fs::path(config_.out) / log->first;
        const auto is_empty = [&](int64_t bytes) { return bytes <= callback->empty_log_bytes(); };
        std::error_code code;
        const bool is_gone = !fs::exists(path, code);
        const auto bytes = static_cast<int64_t>(is_gone ? 0 : fs::file_size(path, code));
        if (is_empty(log->second.bytes)) {
            log->second = {};  // begun anew each time, with another time in its header
        } else if (is_gone || (!code && is_empty(bytes))) {
            warnings_.push_back(fmt::format("{} is gone or empty; it begins anew after step {}",
                                            path.string(), progress.step));
            begins_log_anew_ = true;
            log->second = {};
        }
        callback->resume_log(log->second);
    }
}

void Trainer::check_same_run(const RunProgress& progress) const {
    const fs::path out = config_.out;
    for (const auto& [name, hash] : setup_.inputs)
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
    const bool saved = progress.best_score || (progress.finished && setup_.evaluation.empty());
    const auto is_whole = [&] {
        try {
            return io::has_adapter(config_.out) && !io::read_adapter(config_.out).tensors.empty();
        } catch (const Error&) {
            return false;
        }
    };
    if (!saved || is_whole()) return;
    if (setup_.evaluation.empty() || progress.best_step == progress.step) {
        save_adapter();
        return;
    }
    if (progress.finished)
        fail(ErrorKind::file,
             "{}: the run is finished, but the adapter of step {}, its best, is not there any more, or "
             "damaged; put it back or start a new run with another --out",
             config_.out, progress.best_step);
    warnings_.push_back(
        fmt::format("the adapter of step {}, the best so far, is not in the folder any more, or damaged; the "
                    "next evaluation counts as the best",
                    progress.best_step));
    progress.best_score.reset();
}

RunResult Trainer::run() {
    RunProgress progress;
    open_folder(progress);
    if (const auto missing = ops::missing_compiler();
        setup_.model->model().device().is_cuda() && !missing.empty())
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
    int64_t saved_step = progress.step;
    while (!progress.finished && (progress.step < total_steps_ || progress.evaluation_due)) {
        if ((result.interrupted_by = interrupt_signal())) {
            if (saved_step != progress.step) save_checkpoint(progress);
            break;
        }
        if (!progress.evaluation_due) {
            const auto report = train_step(progress.step);
            progress.step = report.step;
            progress.loss = report.loss;
            if (progress.step % kStepsBetweenReturns == 0) return_freed_memory();
            for (auto* callback : callbacks_) callback->on_step(report);
        }
        const bool last = progress.step == total_steps_;
        progress.evaluation_due = !setup_.evaluation.empty() && (last || progress.step % eval_every == 0);
        if (progress.evaluation_due) {
            if (!evaluate(progress)) continue;
            progress.evaluation_due = false;
            progress.stopped_early =
                config_.patience > 0 && progress.evaluations_without_best >= config_.patience;
        }
        progress.finished = last || progress.stopped_early;
        if (progress.finished && setup_.evaluation.empty()) save_adapter();
        if (progress.finished || progress.step % save_every == 0) {
            save_checkpoint(progress);
            saved_step = progress.step;
        }
    }
    for (auto* callback : callbacks_) callback->on_end();
    result.steps = progress.step;
    result.final_loss = progress.loss;
    result.stopped_early = progress.stopped_early;
    result.best_step = progress.best_step;
    result.best_score = progress.best_score;
    result.best_score_name = setup_.task->main_score();
    result.seconds = seconds_since(start);
    return result;
}

}  // namespace ether::train
