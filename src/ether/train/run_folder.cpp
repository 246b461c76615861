#include "ether/train/run_folder.h"

#include "ether/core/error.h"
#include "ether/core/shell.h"
#include "ether/io/adapter_folder.h"
#include "ether/io/atomic.h"
#include "ether/io/file.h"
#include "ether/train/learning_curve.h"
#include "ether/train/metrics_log.h"
#include "ether/train/run_state.h"
#include "ether/train/tensorboard.h"

namespace ether::train {
namespace {

namespace fs = std::filesystem;

// A run that was killed before it had its run.toml leaves logs without records and checkpoints at most;
// anything else is someone's.
void refuse_foreign_files(const fs::path& folder) {
    std::error_code ignored;
    for (const auto& entry : fs::directory_iterator(folder / kCheckpointsFolder, ignored))
        if (!is_checkpoint_name(io::final_name(entry.path().filename().string())))
            fail(ErrorKind::file, "{}: no run made this, and one would remove it; choose another --out",
                 entry.path().string());
    if (io::has_entry(folder / "config.json"))
        fail(ErrorKind::file, "{}: the folder holds a model; choose another --out", folder.string());
    const auto refuse = [&](const char* name, size_t without_records) {
        std::error_code missing;
        if (fs::file_size(folder / name, missing) > without_records && !missing)
            fail(ErrorKind::file,
                 "{}: the folder has no {} but holds {}, which a run would replace; choose another --out",
                 folder.string(), io::kRunFile, name);
    };
    refuse(kEventFile, TensorBoardLog().header().size());
    for (const char* name : {kMetricsFile, kLearningCurveFile, kLearningCurvePage}) refuse(name, 0);
    for (const char* name : io::kAdapterFiles) refuse(name, 0);
}

void remove_unfinished(const fs::path& folder, bool are_folders) {
    std::error_code ignored;
    for (const auto& entry : fs::directory_iterator(folder, ignored))
        if (const auto name = entry.path().filename().string();
            io::final_name(name) != name && entry.is_directory(ignored) == are_folders)
            fs::remove_all(entry.path(), ignored);
}

}  // namespace

void check_run_folder(const fs::path& folder, bool resume) {
    std::error_code code;
    const auto status = fs::status(folder, code);
    if (status.type() == fs::file_type::none)
        fail(ErrorKind::file, "{}: cannot examine: {}", folder.string(), code.message());
    if (io::has_entry(folder) && !fs::is_directory(status))
        fail(ErrorKind::file, "{}: expected a run's folder, found {}", folder.string(),
             fs::exists(status) ? "a file" : "a link that leads nowhere");
    const bool holds_run = io::has_entry(folder / io::kRunFile);
    if (resume && !holds_run)
        fail(ErrorKind::file, "{}: there is no run to resume ({} is missing)", folder.string(), io::kRunFile);
    if (resume) return;
    if (holds_run)
        fail(
            ErrorKind::file,
            "{}: the folder holds a run already; continue it with ether train --resume {}, or choose another "
            "--out",
            folder.string(), shell_word(folder.string()));
    refuse_foreign_files(folder);
}

void remove_leftovers(const fs::path& folder) {
    io::finish_adapter(folder);
    remove_unfinished(folder, /*are_folders=*/false);
    remove_unfinished(folder / kCheckpointsFolder, /*are_folders=*/true);
}

}  // namespace ether::train
