#include "ether/export/checked_adapter.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "ether/core/error.h"
#include "ether/io/safetensors.h"

namespace ether::exporting {

CheckedAdapter write_checked(eval::LoadedAdapter& loaded, const io::AdapterFiles& files,
                             const std::filesystem::path& folder, const std::string& what, bool exact) {
    const auto file = folder / io::kAdapterWeightsFile;
    io::write_adapter(folder, files);
    io::check_written(file, files.tensors);
    const Probe probe(loaded);
    loaded.base.check();
    const auto dtype = loaded.model->model().dtype();
    auto again = eval::load_adapter(
        {.model = loaded.checkpoint.path().string(), .adapter = folder.string(), .dtype = dtype});
    const auto comparison = probe.compare(again.model->logits({.batch = probe.batch()}));
    if (!std::isfinite(comparison.largest_difference))
        fail(ErrorKind::numeric, "with the {} the model's logits are NaN or infinite; nothing was written",
             what);
    const bool float32 = dtype == at::kFloat;
    if (const double tolerance = comparison.tolerance(float32);
        exact && !(comparison.largest_difference <= tolerance))
        fail(ErrorKind::numeric,
             "the {}'s logits differ from the adapter's by {:.3g}, more than {:.3g} allows; nothing was "
             "written{}",
             what, comparison.largest_difference, tolerance, float32 ? "" : "; try --dtype f32");
    return {std::move(again), comparison, static_cast<int64_t>(std::filesystem::file_size(file))};
}

nlohmann::json description_like(eval::LoadedAdapter& loaded) {
    auto description =
        tasks::adapter_description(*loaded.task, loaded.base.identity(), loaded.max_length, loaded.columns);
    if (loaded.model->is_headless()) description["task"] = tasks::kNoTask;
    return description;
}

}  // namespace ether::exporting
